"""On-policy distillation as Thinking Machines published it in 2025."""

from opd_jax import rollouts
from opd_jax.losses import advantages, divergences, terms
from opd_jax.losses.normalisers import per_token
from opd_jax.losses.vocabulary import Share
from opd_jax.method import Evidence, Method, Shares


def opd(*, coefficient: float = 1.0) -> Method:
  r"""The sampled reverse KL as an advantage, token by token.

      A_t = coefficient (log q(y_t) - log p(y_t)),      loss = -Σ A_t log p(y_t) / tokens

  Departs: divides by the tokens of the batch; the published recipe sums and leaves that to the learning rate.
  """

  def weigh(evidence: Evidence) -> Shares:
    advantage = coefficient * advantages.log_ratio(evidence.teacher.logp, evidence.student.logp)
    return (Share(terms.policy_gradient(), per_token(evidence.rollout.mask) * advantage, {}),)

  return Method(
    rollout=rollouts.student(),
    weigh=weigh,
    descends=divergences.reverse_kl(),
    paper='Thinking Machines Lab, On-Policy Distillation, 2025',
  )
