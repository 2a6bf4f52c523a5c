"""Generalised knowledge distillation, arXiv:2306.13649."""

from opd_jax import rollouts
from opd_jax.claims import Converges, Nothing, Unbiased
from opd_jax.losses.divergences import Divergence, ForwardKL, JensenShannon
from opd_jax.losses.normalisers import per_token
from opd_jax.losses.supports import FULL, Support
from opd_jax.losses.terms import DivergenceTerm
from opd_jax.method import Evidence, Method, WeightedTerms, required_by

VARIANTS = {
  'forward_kl on-policy': {'divergence': ForwardKL(), 'student_fraction': 1.0},
  'temperature 0.9': {'temperature': 0.9},
}


def gkd(
  *,
  divergence: Divergence = JensenShannon(),
  student_fraction: float = 0.5,
  support: Support = FULL,
  temperature: float = 1.0,
) -> Method:
  r"""A divergence over whole distributions, on a mixture of the student's own text and a data set's.

      loss = Σ_t D(p_t, q_t) / tokens;      no gradient flows through the sampling

  arXiv:2306.13649 with its defaults β = λ = 0.5. Departs: both models at temperature one; the published code divides
  both logits by 0.9.

  Args:
    divergence: D.
    student_fraction: λ, the fraction of rows that the student writes.
    support: where D is taken; a teacher's top k asks for far less than its hidden states.
    temperature: both models' logits are divided by it; it needs the whole vocabulary.
  """
  term = DivergenceTerm(divergence=divergence, support=support, temperature=temperature)

  def weigh(evidence: Evidence) -> WeightedTerms:
    return (term(per_token(evidence.mask)),)

  claim = Unbiased(divergence=divergence)
  if support != FULL:
    claim = Nothing('entries outside the support are not compared')
  elif temperature != 1.0:
    claim = Converges()
  return Method(
    rollout=rollouts.mixture(student=student_fraction),
    needs=required_by(term),
    weigh=weigh,
    claim=claim,
    paper='arXiv:2306.13649',
  )
