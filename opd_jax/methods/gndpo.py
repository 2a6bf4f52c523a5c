"""GNDPO, arXiv:2606.09091: advantages of mean zero and deviation one."""

from opd_jax import rollouts
from opd_jax.claims import Converges
from opd_jax.losses import advantages, weights
from opd_jax.losses.normalisers import per_token
from opd_jax.losses.terms import PolicyGradient
from opd_jax.method import Evidence, Method, WeightedTerms

VARIANTS = {'clamped': {'bound': 5.0}}


def gndpo(*, bound: float | None = None) -> Method:
  r"""OPD whose advantages are whitened over the tokens of the batch.

      A_t = (d_t - mean d) / deviation of d,   d_t = (log q - log p)(y_t),      loss = -Σ A_t log p(y_t) / tokens

  arXiv:2606.09091. A baseline and a scale, so the step no longer shrinks with the gap; where most gaps are about zero,
  their signs are the mean's. The papers disagree on whether that helps: arXiv:2606.17199 saw 31.0 fall to 17.0.
  Departs: the deviation is at least 1e-4, where the paper adds an ε.

  Args:
    bound: d is held within ±bound before it is whitened; None leaves it, as published.
  """

  def weigh(evidence: Evidence) -> WeightedTerms:
    gap = advantages.log_ratio(evidence.teacher.logp, evidence.student.logp)
    advantage = weights.whitened(gap, evidence.mask, bound=bound)
    return (PolicyGradient()(per_token(evidence.mask) * advantage),)

  return Method(
    rollout=rollouts.student(), weigh=weigh, claim=Converges(), paper='arXiv:2606.09091'
  )
