"""Floor 3. What a method looks at, found by tracing it on blank evidence: no method has to list it."""

from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from opd_jax.losses.terms import (
  K2,
  K3,
  ClippedRatio,
  DivergenceTerm,
  ImportanceRatio,
  PolicyGradient,
  Term,
)
from opd_jax.method import Evidence, Method, WeightedTerms, requests_of
from opd_jax.types import STUDENT, Prompts, Rollout, ScoreRequest, Scores, TopK


def blank_evidence(
  method: Method, *, rows: int = 4, widths: Mapping[str, int] | None = None
) -> Evidence:
  """Evidence of the right kinds that says nothing: to trace a method without a run.

  Args:
    widths: of the hidden states, by judge.
  """
  evidence = _blank(method, rows, widths or {})
  if method.forks is None:
    return evidence
  forks = jax.eval_shape(method.forks.plan, evidence)
  evidence = _blank(method, rows + len(forks.row), widths or {})
  return evidence._replace(forks=jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), forks))


def _blank(method: Method, rows: int, widths: Mapping[str, int]) -> Evidence:
  needs, width, vocabulary = method.needs, 3, 8
  zeros = lambda *shape: jnp.zeros((rows, width, *shape))
  numbers = lambda *shape: jnp.zeros((rows, width, *shape), jnp.int32)

  def scores(name: str, request: ScoreRequest) -> Scores:
    size = widths.get(name, vocabulary)
    top = lambda k: TopK(ids=numbers(k), logp=zeros(k)) if k else None
    return Scores(
      logp=zeros(),
      known=jnp.ones((rows, width), bool),
      entropy=zeros() if request.entropy else None,
      top_k=top(request.top_k),
      at_ids=top(request.at_student_top_k),
      hidden=zeros(size) if request.hidden else None,
      layers=zeros(len(request.layers), size) if request.layers else None,
    )

  return Evidence.of(
    _blank_rollout(rows, width),
    {'student': scores('student', needs.of_student)}
    | {name: scores(name, request) for name, request in needs.judges.items()},
    needs,
    measures=dict.fromkeys(needs.measures, zeros()),
    memory=jax.tree.map(jnp.asarray, method.memory),
    step=jnp.int32(0),
    key=jax.random.key(0),
  )


def _blank_rollout(rows: int, width: int) -> Rollout:
  zeros, numbers = jnp.zeros((rows, width)), jnp.zeros((rows, width), jnp.int32)
  row = jnp.arange(rows, dtype=jnp.int32)
  prompts = Prompts(tokens=row[:, None], length=jnp.ones_like(row), row=row, group=row // 2)
  return Rollout(
    prompt=prompts,
    response=numbers,
    mask=jnp.ones((rows, width), bool),
    writer=numbers + STUDENT,
    behaviour_logp=zeros,
    logp=zeros,
    entropy=None,
    top_k=None,
    ended_by=row * 0,
    version=row * 0,
    reward=jnp.zeros(rows),
  )


class Read(NamedTuple):
  """A term of a traced method."""

  term: Term
  shapes: Mapping[str, tuple[int, ...]]  # of its inputs
  leaves: frozenset[tuple[str, ...]]  # of the evidence that reach it, by their first three names


def reads_of(method: Method, widths: Mapping[str, int] | None = None) -> list[Read]:
  """The terms of a method and what reaches them; `widths` as in `blank_evidence`.

  `weigh` is traced once; a read of what was not asked for raises here.
  """
  evidence = blank_evidence(method, widths=widths)
  weighted: list[WeightedTerms] = []

  def traced(evidence):
    weighted.append(method.weigh(evidence))
    return [(term.coefficient, dict(term.inputs)) for term in weighted[0]]

  program = jax.make_jaxpr(traced)(evidence).jaxpr
  reads, begin = [], 0
  for term, coefficient, inputs in weighted[0]:
    end = begin + len(jax.tree.leaves((coefficient, dict(inputs))))
    shapes = {name: jnp.shape(value) for name, value in inputs.items()}
    reads.append(Read(term, shapes, _reaching(program, evidence, program.outvars[begin:end])))
    begin = end
  return reads


def read_besides(method: Method) -> frozenset[tuple[str, ...]]:
  """The leaves of the evidence that decide where forks leave, or are remembered; named as in `Read`."""
  looks: list[tuple[Callable[[Evidence], Any], Evidence]] = []
  if method.forks is not None:
    looks.append((method.forks.plan, _blank(method, 4, {})))
  if method.remember is not None:
    looks.append((method.remember, blank_evidence(method)))
  leaves = frozenset[tuple[str, ...]]()
  for function, evidence in looks:
    program = jax.make_jaxpr(function)(evidence).jaxpr
    leaves |= _reaching(program, evidence, program.outvars)
  return leaves


def _reaching(
  program: Any, evidence: Evidence, results: Iterable[Any]
) -> frozenset[tuple[str, ...]]:
  """The leaves of the evidence that some results of a program depend on, by their first three names."""
  names = [
    tuple(str(getattr(part, 'name', getattr(part, 'key', part))) for part in path[:3])
    for path, _ in jax.tree_util.tree_leaves_with_path(evidence)
  ]
  live = _live(program, results)
  return frozenset(name for name, at in zip(names, program.invars, strict=True) if at in live)


def judges_read(method: Method) -> frozenset[str]:
  """The judges that the method makes use of: their scores reach its coefficients, or its terms compare with them.

  So do those that decide where forks leave, or are remembered. Found by tracing, so no method has to list them; a read
  of what was not asked for raises here.
  """
  names = {name for term in method.needs.measures.values() for name in requests_of(term)}
  reads = reads_of(method)
  names |= {each.term.of for each in reads if isinstance(each.term, DivergenceTerm)}
  leaves = read_besides(method).union(*[each.leaves for each in reads])
  return frozenset(
    names | {leaf[1] for leaf in leaves if leaf[0] == 'scores' and leaf[2] != 'known'}
  )


def rollout_read(method: Method) -> frozenset[str]:
  """The fields of the rollout that reach a coefficient or an input of a term: reward, behaviour_logp …"""
  leaves = frozenset[tuple[str, ...]]().union(*[read.leaves for read in reads_of(method)])
  return frozenset(leaf[1] for leaf in leaves if leaf[0] == 'rollout')


def stale_terms(method: Method, *, written_before: bool = False) -> tuple[str, ...]:
  """The terms that several updates of a batch bias: they take text of older weights for that of the present student.

  A term with a ratio corrects for that, by itself. Where the method weighs anew before every update, the ratio or the
  coefficient must look at how likely the text was when it was drawn. Terms of whole distributions and likelihoods are
  what they are at any text.

  Args:
    written_before: whether the text is older than the weights that score it, as `Stage.staleness` has it; then a ratio
      must look at how likely the text was when it was drawn, too.
  """
  stale = []
  for term, _, leaves in reads_of(method):
    drawn = bool({('rollout', 'behaviour_logp'), ('rollout', 'logp')} & leaves)
    ratio = isinstance(term, ClippedRatio | ImportanceRatio)
    corrected = drawn if method.reweigh or written_before else ratio
    if (
      isinstance(term, PolicyGradient | K2 | K3 | ClippedRatio | ImportanceRatio) and not corrected
    ):
      stale.append(term.name)
  return tuple(stale)


def _live(program: Any, results: Iterable[Any]) -> set[Any]:
  """The variables of a jaxpr that some of its results depend on."""
  live = {variable for variable in results if not hasattr(variable, 'val')}
  for equation in reversed(program.eqns):
    if any(variable in live for variable in equation.outvars):
      live |= {variable for variable in equation.invars if not hasattr(variable, 'val')}
  return live
