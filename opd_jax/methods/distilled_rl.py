"""Distilled RL, arXiv:2607.17247: the outcome is followed, and the teacher says which tokens it is owed to."""

import math

import jax.numpy as jnp
from jaxtyping import Float

from opd_jax import rollouts
from opd_jax.claims import Nothing
from opd_jax.losses import advantages, weights
from opd_jax.losses.normalisers import per_token
from opd_jax.losses.terms import ClippedRatio
from opd_jax.method import Evidence, Method, WeightedTerms
from opd_jax.types import AnyArray

VARIANTS = {
  'no reset': {'reset': False},
  'not normalised': {'normalised': False},
  'no bound': {'bound': math.inf},
}


def distilled_rl(
  *, bound: float = 3.0, reset: bool = True, normalised: bool = True, clip: float = 0.2
) -> Method:
  r"""GRPO whose right responses are shared out among their tokens by the teacher's preference.

      loss = Σ PPO( w_t a_i ) / tokens,      w_t = c_t / (Π_j c_j)^(1 / n_i),   c = q / p held between 1/3 and 3

  arXiv:2607.17247, from accounts of it; the bound is put before the geometric mean, which they leave open. a is the
  group's advantage of the outcome; where it is negative w is 1, so that no token is punished for what the teacher likes
  in it. A response that nobody verified has no a, and no gradient.

  Args:
    bound: 3, and one over it; 1 leaves GRPO.
    reset: False weighs wrong responses too.
    normalised: False takes c itself: a teacher that likes a response then also makes it count for more.
    clip: of the ratio; it acts from the second update of a batch on.
  """
  if bound < 1:
    raise ValueError(f'distilled_rl: bound must be at least 1, got {bound}.')
  ratio, most = ClippedRatio(low=clip, high=clip), math.log(bound)

  def shares(evidence: Evidence) -> Float[AnyArray, 'B R']:
    gap = advantages.log_ratio(evidence.teacher.logp, evidence.student.logp)
    gap = advantages.clipped(gap, min=-most, max=most)
    mean = weights.mean_logp(gap, evidence.mask)[:, None]
    return jnp.exp(gap - mean if normalised else gap)

  def weigh(evidence: Evidence) -> WeightedTerms:
    rollout, mask = evidence.rollout, evidence.mask
    outcome = weights.group_advantage(rollout.reward, rollout.prompt.group)[:, None]
    advantage = outcome * jnp.where((outcome > 0) | (not reset), shares(evidence), 1.0)
    return (ratio(per_token(mask), advantage=advantage, behaviour_logp=evidence.student.logp),)

  return Method(
    rollout=rollouts.student(),
    weigh=weigh,
    claim=Nothing('the outcome is followed; the teacher only shares it out among tokens'),
    paper='arXiv:2607.17247',
  )
