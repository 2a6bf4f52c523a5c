"""Floor 3. Which judges a method looks at, found by tracing it once: no method has to list them."""

from typing import Any

import jax
import jax.numpy as jnp

from opd_jax.losses.terms import DivergenceTerm
from opd_jax.method import Evidence, Method, WeightedTerms, requests_of
from opd_jax.types import STUDENT, Prompts, Rollout, ScoreRequest, Scores, TopK


def blank_evidence(
  method: Method, *, rows: int = 4, width: int = 3, vocabulary: int = 8
) -> Evidence:
  """Evidence of the right kinds that says nothing: to trace a method without a run."""
  zeros = lambda *shape: jnp.zeros((rows, width, *shape))
  numbers = lambda *shape: jnp.zeros((rows, width, *shape), jnp.int32)

  def scores(request: ScoreRequest) -> Scores:
    top = lambda k: TopK(ids=numbers(k), logp=zeros(k)) if k else None
    return Scores(
      logp=zeros(),
      known=jnp.ones((rows, width), bool),
      entropy=zeros() if request.entropy else None,
      top_k=top(request.top_k),
      at_ids=top(request.at_student_top_k),
      hidden=zeros(vocabulary) if request.hidden else None,
      layers=zeros(len(request.layers), vocabulary) if request.layers else None,
    )

  row = jnp.arange(rows, dtype=jnp.int32)
  prompts = Prompts(tokens=row[:, None], length=jnp.ones_like(row), row=row, group=row // 2)
  rollout = Rollout(
    prompt=prompts,
    response=numbers(),
    mask=jnp.ones((rows, width), bool),
    writer=numbers() + STUDENT,
    behaviour_logp=zeros(),
    logp=zeros(),
    entropy=None,
    top_k=None,
    ended_by=row * 0,
    version=row * 0,
    reward=jnp.zeros(rows),
  )
  requests = {'student': method.needs.of_student, **method.needs.judges}
  return Evidence.of(
    rollout,
    {name: scores(request) for name, request in requests.items()},
    method.needs,
    measures={name: zeros() for name in method.needs.measures},
    memory=jax.tree.map(jnp.asarray, method.memory),
    step=jnp.int32(0),
    key=jax.random.key(0),
  )


def judges_read(method: Method) -> frozenset[str]:
  """The judges that the method makes use of: their scores reach its coefficients, or its terms compare with them.

  Found by tracing `weigh` once, so no method has to list them; a read of what was not asked for raises here.
  """
  evidence = blank_evidence(method)
  weighted: list[WeightedTerms] = []

  def traced(evidence):
    terms = method.weigh(evidence)
    weighted.append(terms)
    return [(term.coefficient, dict(term.inputs)) for term in terms]

  program = jax.make_jaxpr(traced)(evidence).jaxpr
  live = _live(program)
  names: set[str] = {term.term.of for term in weighted[0] if isinstance(term.term, DivergenceTerm)}
  names |= {name for term in method.needs.measures.values() for name in requests_of(term)}
  paths = [path for path, _ in jax.tree_util.tree_leaves_with_path(evidence)]
  for path, variable in zip(paths, program.invars, strict=True):
    field, key = (
      (getattr(part, 'name', getattr(part, 'key', None)) for part in path[:2])
      if len(path) > 1
      else (None, None)
    )
    leaf = getattr([*path, None][-2], 'name', None)
    if field == 'scores' and leaf != 'known' and variable in live:
      names.add(str(key))
  return frozenset(names)


def _live(program: Any) -> set[Any]:
  """The variables of a jaxpr that its results depend on."""
  live = {variable for variable in program.outvars if not hasattr(variable, 'val')}
  for equation in reversed(program.eqns):
    if any(variable in live for variable in equation.outvars):
      live |= {variable for variable in equation.invars if not hasattr(variable, 'val')}
  return live
