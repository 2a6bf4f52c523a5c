"""On-policy distillation as Thinking Machines published it in 2025."""

from opd_jax import rollouts
from opd_jax.claims import Converges, Nothing, Unbiased
from opd_jax.losses import advantages
from opd_jax.losses.divergences import ReverseKL
from opd_jax.losses.normalisers import per_token
from opd_jax.losses.terms import PolicyGradient
from opd_jax.method import Evidence, Method, WeightedTerms
from opd_jax.ramps import Number, at

VARIANTS = {}


def opd(*, coefficient: Number = 1.0) -> Method:
  r"""The sampled reverse KL as an advantage, token by token.

      A_t = coefficient (log q(y_t) - log p(y_t)),      loss = -Σ A_t log p(y_t) / tokens

  Departs: divides by the tokens of the batch, where the published recipe sums; takes the student's log-probability
  as scored when the batch is weighed and no ratio, where the recipe takes the sampler's in both.
  """

  def weigh(evidence: Evidence) -> WeightedTerms:
    advantage = advantages.log_ratio(evidence.teacher.logp, evidence.student.logp)
    scale = at(coefficient, evidence.step)
    return (PolicyGradient()(per_token(evidence.mask) * scale * advantage),)

  claim = Unbiased(divergence=ReverseKL())
  if coefficient != 1.0:
    positive = isinstance(coefficient, int | float) and coefficient > 0
    claim = Converges() if positive else Nothing('the coefficient moves, or is not positive')
  return Method(
    rollout=rollouts.student(),
    weigh=weigh,
    claim=claim,
    paper='Thinking Machines Lab, On-Policy Distillation, 2025',
  )
