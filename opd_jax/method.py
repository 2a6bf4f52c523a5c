"""Floor 3. A method: who writes, what the judges must tell, and what their evidence is made into.

`weigh` sees the whole batch as data, before any gradient exists, and returns weighted terms whose coefficients are
already divided. The update only sums coefficient · term, so a loss cannot depend on how a batch is cut.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Bool, Float, Int, PRNGKeyArray

from opd_jax.claims import Claim
from opd_jax.forks import Forking, Forks
from opd_jax.losses.terms import DivergenceTerm, Term, WeightedTerm
from opd_jax.losses.vocab_shard import Target
from opd_jax.probes import Probe
from opd_jax.rollouts import RolloutMix
from opd_jax.types import AnyArray, Rollout, ScoreRequest, Scores

WeightedTerms = tuple[WeightedTerm, ...]


class JudgeView:
  """One judge's scores as a method reads them: a field that nobody asked for is an error that names the request."""

  def __init__(self, name: str, scores: Scores):
    self._name, self._scores = name, scores

  def __getattr__(self, field: str) -> Any:
    value = getattr(self._scores, field)
    if value is None and field == 'chunk':  # one tokenizer: every token is a chunk
      return jnp.broadcast_to(jnp.arange(self._scores.logp.shape[1]), self._scores.logp.shape)
    if value is None:
      asked = {'top_k': 'top_k=…', 'at_ids': 'at_student_top_k=…', 'layers': 'layers=(…,)'}.get(
        field, f'{field}=True'
      )
      role = self._name if self._name in ('student', 'teacher') else 'others'
      request = f'ScoreRequest({asked})'
      request = request if role != 'others' else f'{{{self._name!r}: {request}}}'
      raise ValueError(
        f'evidence: the method reads {field!r} of the {self._name}, and nobody asked for it. Name it in the method: '
        f'needs=Requirements({role}={request}).'
      )
    return value


class Evidence(NamedTuple):
  """What is known about a batch when it is weighed. All of it is data: nothing here has a gradient.

  A method gets it through `as_asked`: where a token does not count, or its judge has not scored it, numbers are zero
  whatever the judge said there. So a method guards against nothing. It divides by `mask`, the tokens that count and
  that every judge which was asked has scored, where it reads judges; by `rollout.mask` where it reads none.
  """

  rollout: Rollout
  mask: Bool[AnyArray, 'B R']  # tokens that count and that all judges have scored
  scores: Mapping[str, Scores]  # by judge: 'student', 'teacher', 'reference' …
  measures: Mapping[str, Float[AnyArray, 'B R']]  # values of terms, by name
  memory: Any  # what the method remembers of earlier batches
  step: Int[AnyArray, '']
  key: PRNGKeyArray
  forks: Forks | None = None  # what the last rows are forks of; None: there are none

  @classmethod
  def of(
    cls,
    rollout: Rollout,
    scores: Mapping[str, Scores],
    needs: 'Requirements',
    *,
    measures: Mapping[str, Any] | None = None,
    memory: Any = None,
    step: Any,
    key: PRNGKeyArray,
    forks: Forks | None = None,
  ) -> 'Evidence':
    """Evidence with its mask: what counts, where all judges that the method asks have an opinion."""
    mask = rollout.mask
    for name in needs.judges:
      if name in scores:
        mask = mask & scores[name].known
    return cls(rollout, mask, scores, measures or {}, memory, step, key, forks)

  def judge(self, name: str) -> JudgeView:
    """The scores of a judge; which ones there are is said where it is missing."""
    if name not in self.scores:
      raise ValueError(
        f'evidence: the method reads the judge {name!r}, and there are only {sorted(self.scores)}. Bind one: '
        f'experiment.Stage.judges = {{{name!r}: @judges.frozen()}}.'
      )
    return JudgeView(name, self.scores[name])

  @property
  def student(self) -> JudgeView:
    return self.judge('student')

  @property
  def teacher(self) -> JudgeView:
    return self.judge('teacher')


def _joined(one: ScoreRequest, other: ScoreRequest) -> ScoreRequest:
  """Both requests; one that asks for nothing has no temperature in mind."""
  if ScoreRequest() in (one, other):
    return other if one == ScoreRequest() else one
  return one | other


@dataclasses.dataclass(frozen=True, kw_only=True)
class Requirements:
  """What the judges are asked for. Requirements compose with `|`.

  Args:
    student, teacher: see `ScoreRequest`.
    others: further judges by name, e.g. {'reference': ScoreRequest()}.
    measures: terms to be read before they are weighed, by name: `evidence.measures`.
    reward: whether a task without a verifier is refused; None: it is where `weigh` reads `rollout.reward`. False is for
      methods that say what they do with responses that nobody verified, all of them included.
  """

  student: ScoreRequest = ScoreRequest()
  teacher: ScoreRequest = ScoreRequest()
  others: Mapping[str, ScoreRequest] = dataclasses.field(default_factory=dict)
  measures: Mapping[str, Term] = dataclasses.field(default_factory=dict)
  reward: bool | None = None

  def __or__(self, other: 'Requirements') -> 'Requirements':
    names = sorted(self.others.keys() | other.others.keys())
    none = ScoreRequest()
    return Requirements(
      student=_joined(self.student, other.student),
      teacher=_joined(self.teacher, other.teacher),
      others={
        name: _joined(self.others.get(name, none), other.others.get(name, none)) for name in names
      },
      measures={**self.measures, **other.measures},
      reward=other.reward if self.reward is None else self.reward or bool(other.reward),
    )

  @property
  def judges(self) -> dict[str, ScoreRequest]:
    """The request of every judge but the student."""
    requests = {'teacher': self.teacher, **self.others}
    for term in self.measures.values():
      for name, request in requests_of(term).items():
        requests[name] = _joined(requests.get(name, ScoreRequest()), request)
    return requests

  @property
  def of_student(self) -> ScoreRequest:
    """The student's request, with the top k that judges are asked about."""
    asked = max(request.at_student_top_k for request in self.judges.values())
    return dataclasses.replace(self.student, top_k=max(self.student.top_k, asked))


def requests_of(term: Term) -> dict[str, ScoreRequest]:
  """What a term asks of which judge."""
  if not isinstance(term, DivergenceTerm):
    return {}
  tempered = ScoreRequest(hidden=term.temperature != 1.0)  # only whole distributions can be
  return {term.of: term.support.request | tempered}


def required_by(*terms: Term) -> Requirements:
  """What some terms need of the judges."""
  needs = Requirements()
  for term in terms:
    for name, request in requests_of(term).items():
      needs |= (
        Requirements(teacher=request) if name == 'teacher' else Requirements(others={name: request})
      )
  return needs


@dataclasses.dataclass(frozen=True, kw_only=True)
class Method:
  """One paper.

  Args:
    weigh: evidence in, weighted terms out; traced once, on the whole batch.
    paper: where it was published.
    rollout: who writes.
    claim: what its gradient is in expectation; `opd certify` holds a method to it.
    needs: what the judges must tell.
    memory: what `evidence.memory` is before the first batch: a tree of arrays, or None.
    remember: evidence -> the memory for the next batch; of the same shapes.
    forks: rows that leave the responses inside; `weigh` sees them as the last rows of the batch.
    probe: what is measured of gradients now and then, for numbers that follow it.
    reweigh: whether each minibatch is scored and weighed anew by the student as it is by then.
  """

  weigh: Callable[[Evidence], WeightedTerms]
  paper: str
  rollout: RolloutMix
  claim: Claim
  needs: Requirements = Requirements()
  memory: Any = None
  remember: Callable[[Evidence], Any] | None = None
  forks: Forking | None = None
  probe: Probe | None = None
  reweigh: bool = False


# --- evidence as the vocabulary pass and a method want it ------------------------------------------


def targets_of(evidence: Evidence, heads: Mapping[str, Any]) -> dict[str, Target]:
  """What is known of every judge, for terms that compare distributions.

  Args:
    heads: of the judges whose hidden states were scored.
  """
  return {
    name: Target(
      top_k=scores.top_k,
      at_ids=scores.at_ids,
      hidden=scores.hidden,
      head=None if scores.hidden is None else heads[name],
    )
    for name, scores in evidence.scores.items()
    if name != 'student'
  }


def _cut(scores: Scores, request: ScoreRequest) -> Scores:
  top = scores.top_k
  top = (
    None
    if top is None or not request.top_k
    else jax.tree.map(lambda x: x[..., : request.top_k], top)
  )
  at = scores.at_ids
  at = (
    None
    if at is None or not request.at_student_top_k
    else jax.tree.map(lambda x: x[..., : request.at_student_top_k], at)
  )
  return scores._replace(
    top_k=top,
    at_ids=at,
    entropy=scores.entropy if request.entropy else None,
    hidden=scores.hidden if request.hidden else None,
    layers=scores.layers if request.layers else None,
  )


def as_asked(evidence: Evidence, needs: Requirements) -> Evidence:
  """Evidence as the method asked for it: nothing that was scored for others, and zeros where a number means nothing."""
  requests = {'student': needs.student, **needs.judges}
  written = jnp.asarray(evidence.rollout.mask)

  def inside(tree, mask):
    zero = lambda x: jnp.where(mask.reshape(mask.shape + (1,) * (jnp.ndim(x) - 2)), x, 0)
    return jax.tree.map(lambda x: zero(x) if jnp.issubdtype(x.dtype, jnp.floating) else x, tree)

  scores = {
    name: inside(_cut(each, requests[name]), written & each.known)
    for name, each in evidence.scores.items()
    if name in requests
  }
  return evidence._replace(
    scores=scores, measures=inside(dict(evidence.measures), jnp.asarray(evidence.mask))
  )
