"""ExOPD, the extrapolating case of G-OPD, arXiv:2602.12125."""

from opd_jax import rollouts
from opd_jax.losses import advantages, divergences, terms
from opd_jax.losses.normalisers import per_token
from opd_jax.losses.vocabulary import WeightedTerm
from opd_jax.method import Evidence, Method, Needs, WeightedTerms, reference


def exopd(*, strength: float = 1.25, clip: float = 0.2, dual: float | None = 3.0) -> Method:
  r"""Beyond the teacher, in the direction that leads from a reference to it.

      A_t = (log q - log p)(y_t) + (λ - 1)(log q - log r)(y_t);      the optimum is p ∝ r^(1-λ) q^λ

  arXiv:2602.12125, λ = 1.25; r is the student before training unless the run names another. λ = 1 is OPD, λ = 1.8 was
  seen to collapse (arXiv:2606.09304).

  Args:
    strength: λ.
    clip, dual: of the ratio; they act from the second update of a batch on.
  """
  term = terms.clipped_ratio(low=clip, high=clip, dual=dual)

  def weigh(evidence: Evidence) -> WeightedTerms:
    student = evidence.student.logp
    advantage = advantages.extrapolated(
      evidence.teacher.logp, student, reference(evidence, 'reference').logp, strength=strength
    )
    inputs = {'advantage': advantage, 'behaviour_logp': student}
    return (WeightedTerm(term, per_token(evidence.rollout.mask), inputs),)

  return Method(
    rollout=rollouts.student(),
    needs=Needs(others=('reference',)),
    weigh=weigh,
    descends=divergences.reverse_kl(),
    optimum=lambda log_q, log_r: strength * log_q + (1 - strength) * log_r,
    paper='arXiv:2602.12125',
  )
