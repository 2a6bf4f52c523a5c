"""On-policy distillation as Thinking Machines published it in 2025."""

import jax.numpy as jnp

from opd_jax import rollouts
from opd_jax.losses import advantages, divergences, terms
from opd_jax.losses.normalisers import per_token
from opd_jax.losses.vocabulary import WeightedTerm
from opd_jax.method import Evidence, Method, WeightedTerms


def opd(*, coefficient: float = 1.0) -> Method:
  r"""The sampled reverse KL as an advantage, token by token.

      A_t = coefficient (log q(y_t) - log p(y_t)),      loss = -Σ A_t log p(y_t) / tokens

  Departs: divides by the tokens of the batch, where the published recipe sums; takes the student's log-probability
  as scored when the batch is weighed and no ratio, where the recipe takes the sampler's in both.
  """

  def weigh(evidence: Evidence) -> WeightedTerms:
    advantage = coefficient * advantages.log_ratio(evidence.teacher.logp, evidence.student.logp)
    mask = evidence.rollout.mask
    return (
      WeightedTerm(terms.policy_gradient(), jnp.where(mask, per_token(mask) * advantage, 0.0), {}),
    )

  return Method(
    rollout=rollouts.student(),
    weigh=weigh,
    descends=divergences.reverse_kl(),
    paper='Thinking Machines Lab, On-Policy Distillation, 2025',
  )
