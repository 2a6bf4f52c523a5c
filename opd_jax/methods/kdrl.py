"""KDRL, arXiv:2506.02208: reinforcement learning with a verifier, and distillation beside it."""

import jax.numpy as jnp
from jaxtyping import Bool

from opd_jax import rollouts
from opd_jax.claims import Nothing
from opd_jax.losses import advantages, weights
from opd_jax.losses.normalisers import per_token
from opd_jax.losses.terms import K2, K3, ClippedRatio
from opd_jax.method import Evidence, Method, WeightedTerms
from opd_jax.ramps import Number, Ramp, at
from opd_jax.types import AnyArray

ESTIMATORS = ('k2', 'k3', 'reward')

VARIANTS = {
  'constant': {'coefficient': 2e-3},
  'k3': {'estimator': 'k3'},
  'reward': {'estimator': 'reward'},
  'where wrong': {'where_wrong': True},
}


def kdrl(
  *,
  coefficient: Number = Ramp(begin=5e-3, end=1e-3, steps=100),
  estimator: str = 'k2',
  where_wrong: bool = False,
  clip: float = 0.2,
) -> Method:
  r"""GRPO, and reverse KL to a teacher with a small weight that falls.

      loss = Σ_t [ PPO( a_i ) + β ½ (log p(y_t) - log q(y_t))² ] / tokens,      a_i = (r_i - mean) / deviation

  arXiv:2506.02208; mean and deviation are those of a question's group. β falls from 0.005 to 0.001; in how many steps
  our sources do not say, 100 is ours. k2 as a loss has the gradient of reverse KL on the student's own text, k3 that of
  forward KL. Departs: a group that agrees has a = 0.

  Args:
    coefficient: β, by step.
    estimator: 'k2'; or what the paper compares it with, 'k3' and 'reward': β (log q - log p) as a second advantage,
      beside the group's, which is our reading; in the first update of a batch it has the gradient of 'k2'.
    where_wrong: distils only from responses that were not rewarded, the paper's reward-guided masking; the divisor
      stays.
    clip: of the ratio; it acts from the second update of a batch on.
  """
  if estimator not in ESTIMATORS:
    raise ValueError(f'kdrl: estimator is one of {", ".join(ESTIMATORS)}; got {estimator!r}.')
  ratio = ClippedRatio(low=clip, high=clip)
  direct = {'k2': K2(), 'k3': K3()}.get(estimator)

  def distilled(evidence: Evidence) -> Bool[AnyArray, 'B R']:
    right = weights.right(evidence.rollout.reward)
    return evidence.mask & ~right[:, None] if where_wrong else evidence.mask

  def weigh(evidence: Evidence) -> WeightedTerms:
    rollout, student, teacher = evidence.rollout, evidence.student.logp, evidence.teacher.logp
    own = per_token(rollout.mask)
    outcome = weights.group_advantage(rollout.reward, rollout.prompt.group)[:, None]
    counts = per_token(evidence.mask) * distilled(evidence) * at(coefficient, evidence.step)
    advantage = jnp.broadcast_to(outcome, student.shape)
    if direct is not None:
      reinforced = ratio(own, advantage=advantage, behaviour_logp=student)
      return reinforced, direct(counts, teacher_logp=teacher)
    gap = advantages.log_ratio(teacher, student)
    return (
      ratio(own, advantage=advantage, behaviour_logp=student),
      ratio(counts, advantage=gap, behaviour_logp=student),
    )

  return Method(
    rollout=rollouts.student(),
    weigh=weigh,
    claim=Nothing('what a verifier rewards is reinforced, whatever the teacher thinks of it'),
    paper='arXiv:2506.02208',
  )
