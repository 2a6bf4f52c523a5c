"""Importance-weighted on-policy distillation, arXiv:2606.22600, with its weights and their controls."""

from collections.abc import Callable

from jaxtyping import Bool, Float

from opd_jax import rollouts
from opd_jax.losses import advantages, terms, weights
from opd_jax.losses.normalisers import per_token
from opd_jax.losses.vocabulary import WeightedTerm
from opd_jax.method import Evidence, Method, WeightedTerms
from opd_jax.types import AnyArray

Weight = Callable[
  [Float[AnyArray, 'B R'], Bool[AnyArray, 'B R']], Float[AnyArray, 'B R']
]  # of gap and mask


def cumulative(*, gamma: float = 0.5) -> Weight:
  """1 + γ (1 - F), F the share of |gap| that lies before: the paper's rule."""
  return lambda gap, mask: weights.prefix_discrepancy(gap, mask, gamma=gamma)


def signed(*, gamma: float = 0.5) -> Weight:
  """The same with the gap's sign kept."""
  return lambda gap, mask: weights.prefix_discrepancy(gap, mask, gamma=gamma, signed=True)


def linear(*, gamma: float = 0.5) -> Weight:
  """1 + γ (1 - t / n)."""
  return lambda gap, mask: weights.linear(mask, gamma=gamma)


def fixed_prefix(*, gamma: float = 0.5, fraction: float = 0.3) -> Weight:
  """1 + γ on the first `fraction` of a response, 1 behind."""
  return lambda gap, mask: 1.0 + gamma * weights.first(mask, fraction=fraction)


def first(*, fraction: float = 0.3) -> Weight:
  """Nothing but the first `fraction` of a response."""
  return lambda gap, mask: weights.first(mask, fraction=fraction)


def last(*, fraction: float = 0.3) -> Weight:
  """Nothing but the last `fraction` of a response."""
  return lambda gap, mask: weights.last(mask, fraction=fraction)


def mean_one(weight: Weight = cumulative()) -> Weight:
  """The control: the same weight with mean one, so that no part of its effect is a larger step."""
  return lambda gap, mask: weights.mean_one(weight(gap, mask), mask)


def iw_opd(*, weight: Weight = cumulative(), clip: float = 0.2, dual: float | None = 3.0) -> Method:
  r"""OPD whose early tokens count more, by how far teacher and student have already come apart.

      loss = Σ_t PPO( w_t A_t ) / tokens,      w_t = 1 + γ (1 - Σ_{k<t} |A_k| / Σ_k |A_k|)

  arXiv:2606.22600; γ = 0.5. Weights are not renormalised, as published: `mean_one` is the control for that.
  Departs: the paper's denominator leaves the last token out, its code does not; we follow the code.

  Args:
    weight: one of this file's.
    clip, dual: of the ratio; they act from the second update of a batch on.
  """
  term = terms.clipped_ratio(low=clip, high=clip, dual=dual)

  def weigh(evidence: Evidence) -> WeightedTerms:
    mask, student = evidence.rollout.mask, evidence.student.logp
    gap = advantages.log_ratio(evidence.teacher.logp, student)
    inputs = {'advantage': weight(gap, mask) * gap, 'behaviour_logp': student}
    return (WeightedTerm(term, per_token(mask), inputs),)

  return Method(rollout=rollouts.student(), weigh=weigh, paper='arXiv:2606.22600')
