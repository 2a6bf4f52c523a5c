"""TGPO, arXiv:2605.13230: reinforcement learning, and at every position the token that the teacher likes best."""

import jax.numpy as jnp

from opd_jax import rollouts
from opd_jax.claims import Nothing
from opd_jax.losses import weights
from opd_jax.losses.normalisers import per_sequence, per_token
from opd_jax.losses.terms import Candidates, ClippedRatio
from opd_jax.method import Evidence, Method, Requirements, WeightedTerms
from opd_jax.ramps import Number, Ramp, at
from opd_jax.types import ScoreRequest

VARIANTS = {
  'constant weight': {'weight': 2e-3},
  'guidance only': {'weight': 1.0, 'reinforce': False},
  'as printed': {'summed': True},
}


def tgpo(
  *,
  weight: Number = Ramp(begin=2e-3, end=0.0, steps=200),
  reinforce: bool = True,
  summed: bool = False,
  clip: float = 0.2,
) -> Method:
  r"""GRPO, and likelihood of the token that the teacher would write next, with a weight that falls to zero.

      loss = Σ_t [ PPO( a_i ) - w log p(argmax_v q(v)) ] / tokens,      a_i = (r_i - mean) / deviation in the group

  arXiv:2605.13230: for a teacher of another family, whose log-ratios are too large to be rewards. w falls in a straight
  line from 0.002 to zero in 200 steps. The guidance is printed as a sum over a response, the reward as a mean over
  tokens; here both are means over tokens, `as printed` sums. Departs: a group that agrees has a = 0.

  Args:
    weight: w, by step.
    reinforce: False leaves the guidance alone, for tasks without a verifier.
    summed: the guidance is a sum over a response, and a mean over responses.
    clip: of the ratio; it acts from the second update of a batch on.
  """
  ratio = ClippedRatio(low=clip, high=clip)

  def weigh(evidence: Evidence) -> WeightedTerms:
    rollout, mask, student = evidence.rollout, evidence.mask, evidence.student.logp
    mean = per_token(mask)
    if summed:
      mean = per_sequence(mask) * mask.sum(axis=1, keepdims=True)
    best = evidence.teacher.top_k.ids[..., :1]
    scale = at(weight, evidence.step)
    guided = Candidates()(mean * scale, ids=best, weights=jnp.ones(best.shape, student.dtype))
    if not reinforce:
      return (guided,)
    outcome = weights.group_advantage(rollout.reward, rollout.prompt.group)[:, None]
    advantage = jnp.broadcast_to(outcome, student.shape)
    return guided, ratio(per_token(rollout.mask), advantage=advantage, behaviour_logp=student)

  return Method(
    rollout=rollouts.student(),
    needs=Requirements(teacher=ScoreRequest(top_k=1)),
    weigh=weigh,
    claim=Nothing('only the likeliest token of the teacher is taught, and the outcome is rewarded'),
    paper='arXiv:2605.13230',
  )
