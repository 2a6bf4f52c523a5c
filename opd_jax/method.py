"""Floor 3. A method: who writes, what the judges must tell, and what their evidence is made into.

`weigh` sees the whole batch as data, before any gradient exists, and returns `WeightedTerm`s: terms with coefficients that
are already divided. The update only sums coefficient · term, so a loss cannot depend on how a batch is cut.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from jaxtyping import Array, Int, PRNGKeyArray

from opd_jax.inference import scorer
from opd_jax.losses.divergences import Divergence
from opd_jax.losses.supports import Support
from opd_jax.losses.vocab_shard import Target
from opd_jax.losses.vocabulary import WeightedTerm
from opd_jax.rollouts import RolloutMix
from opd_jax.types import AnyArray, Rollout, Scores, TopK

WeightedTerms = tuple[WeightedTerm, ...]


class Evidence(NamedTuple):
  """What is known about a batch when it is weighed. All of it is data: nothing here has a gradient."""

  rollout: Rollout
  student: Scores
  teacher: (
    Any  # Scores; None where a run has no teacher, and then a method that reads it is refused
  )
  others: Mapping[str, Scores]  # 'reference', 'teacher_base' …
  step: Int[AnyArray, '']
  key: PRNGKeyArray


@dataclasses.dataclass(frozen=True, kw_only=True)
class Needs:
  """What the judges are asked for besides the log-probability of the written token.

  Args:
    teacher, student: per judge, see `scorer.Needs`.
    at_student_top_k: the teacher's log-probabilities at this many of the student's likeliest tokens.
    others: names of further judges, e.g. 'reference'.
  """

  teacher: scorer.Needs = scorer.Needs()
  student: scorer.Needs = scorer.Needs()
  at_student_top_k: int = 0
  others: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True, kw_only=True)
class Method:
  """One paper.

  Args:
    weigh: evidence in, weighted_terms out; traced once, on the whole batch.
    paper: where it was published.
    rollout: who writes.
    needs: what the judges must tell.
    descends: the divergence from `optimum` whose gradient, at the writer's own prefixes, the expected update is; None
      where the paper claims no such thing. `opd certify` holds a method to it.
    optimum: (log q, log r) -> logits of the distribution it leads to; r is the reference, and the default is q.
  """

  weigh: Callable[[Evidence], WeightedTerms]
  paper: str
  rollout: RolloutMix
  needs: Needs = Needs()
  descends: Divergence | None = None
  optimum: Callable[[Array, Array], Array] = lambda log_q, log_r: log_q


def needs_of(support: Support) -> Needs:
  """What a divergence on this support needs."""
  asks = support.asks
  teacher = scorer.Needs(top_k=asks.top_k, hidden=asks.everything)
  return Needs(
    teacher=teacher,
    at_student_top_k=asks.at_student_top_k,
    student=scorer.Needs(top_k=asks.at_student_top_k),
  )


def target_of(evidence: Evidence, head: Array | None) -> Target:
  """The teacher as the vocabulary pass wants it.

  Args:
    head: of the teacher; wanted where its hidden states were scored.
  """
  teacher, student = evidence.teacher, evidence.student
  asked = None
  if teacher.at_ids is not None and student.top_k is not None:
    asked = TopK(ids=student.top_k.ids, logp=teacher.at_ids)
  return Target(
    top_k=teacher.top_k,
    at_ids=asked,
    hidden=teacher.hidden,
    head=None if teacher.hidden is None else head,
  )


def reference(evidence: Evidence, name: str) -> Scores:
  """A further judge by name."""
  if name not in evidence.others:
    raise ValueError(
      f'method: it reads the judge {name!r}, and the evidence has {sorted(evidence.others)}. Score it.'
    )
  return evidence.others[name]
