"""Generalised knowledge distillation, arXiv:2306.13649."""

from opd_jax import rollouts
from opd_jax.losses import divergences, supports, terms
from opd_jax.losses.divergences import Divergence
from opd_jax.losses.normalisers import per_token
from opd_jax.losses.supports import Support
from opd_jax.losses.vocabulary import WeightedTerm
from opd_jax.method import Evidence, Method, WeightedTerms, needs_of


def gkd(
  *,
  divergence: Divergence = divergences.jensen_shannon(beta=0.5),
  student_fraction: float = 0.5,
  support: Support = supports.full(),
) -> Method:
  r"""A divergence over whole distributions, on a mixture of the student's own text and a data set's.

      loss = Σ_t D(p_t, q_t) / tokens;      no gradient flows through the sampling

  arXiv:2306.13649 with its defaults β = λ = 0.5. Departs: both models at temperature one (the published code divides
  both logits by 0.9).

  Args:
    divergence: D.
    student_fraction: λ, the share of rows that the student writes.
    support: where D is taken; a teacher's top k asks for far less than its hidden states.
  """
  term = terms.divergence(divergence, support)

  def weigh(evidence: Evidence) -> WeightedTerms:
    return (WeightedTerm(term, per_token(evidence.rollout.mask), {}),)

  return Method(
    rollout=rollouts.mixture(student=student_fraction),
    needs=needs_of(support),
    weigh=weigh,
    descends=divergence if support == supports.full() else None,
    paper='arXiv:2306.13649',
  )
