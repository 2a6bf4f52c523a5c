"""Uni-OPD, arXiv:2605.03677: right answers are worth more to the teacher than wrong ones, by a margin."""

import jax.numpy as jnp
from jaxtyping import Bool, Float, Int

from opd_jax import rollouts
from opd_jax.claims import Converges, Nothing
from opd_jax.losses import advantages, weights
from opd_jax.losses.normalisers import per_sequence
from opd_jax.losses.terms import ClippedRatio
from opd_jax.method import Evidence, Method, WeightedTerms
from opd_jax.types import AnyArray

Rows = Float[AnyArray, ' B']
Groups = Int[AnyArray, ' B']
Which = Bool[AnyArray, ' B']
VARIANTS = {
  'correct up': {'up': 1.0, 'down': 0.0},
  'extremes': {'extremes': True},
  'no margin': {'margin': None},
}


def shift_of(score: Rows, group: Groups, right: Which, wrong: Which, margin: float, extremes: bool):
  """What a group lacks of the margin between its right and its wrong responses; 0 where it has only one kind."""
  same = group[:, None] == group
  each = jnp.broadcast_to(score, same.shape)
  both = (same & right).any(axis=1) & (same & wrong).any(axis=1)
  if extremes:
    above = each.min(axis=1, where=same & right, initial=jnp.inf)
    below = each.max(axis=1, where=same & wrong, initial=-jnp.inf)
  else:
    above, below = (each.mean(axis=1, where=same & rows) for rows in (right, wrong))
  return jnp.where(both, jnp.maximum(margin - (above - below), 0.0), 0.0)


def uni_opd(
  *,
  margin: float | None = 0.4,
  bound: float = 10.0,
  up: float = 0.5,
  down: float = 0.5,
  extremes: bool = False,
  low: float = 0.2,
  high: float = 0.28,
) -> Method:
  r"""OPD whose right responses of a question are worth at least a margin more than its wrong ones.

      A_t = d_t ± s_g / 2,   s_g = max(0, δ - (mean of a_i over right - mean over wrong)),   a_i = mean_t d_t

  arXiv:2605.03677 in its released code: d = log q - log p held within ±10, δ = 0.4, the upper sign for the right
  responses of group g, the lower one for its wrong ones, one PPO mean per response. Its filter that balances questions
  by difficulty is left to the order of the data.

  Args:
    margin: δ, in nats a token; None leaves d as it is.
    bound: of d.
    up, down: the parts of s by which right ones rise and wrong ones fall; released are also 1 and 0, 0 and 1.
    extremes: the worst of the right ones less the best of the wrong ones, instead of means.
    low, high: clip of the ratio; it acts from the second update of a batch on.
  """
  if bound <= 0 or min(up, down) < 0:
    raise ValueError(
      f'uni_opd: bound must be above 0, up and down not negative; got {bound}, {up}, {down}.'
    )
  ratio = ClippedRatio(low=low, high=high)

  def weigh(evidence: Evidence) -> WeightedTerms:
    rollout, mask, student = evidence.rollout, evidence.mask, evidence.student.logp
    gap = advantages.log_ratio(evidence.teacher.logp, student)
    gap = advantages.clipped(gap, min=-bound, max=bound)
    if margin is not None:
      there = mask.any(axis=1)
      right, wrong = (there & rows(rollout.reward) for rows in (weights.right, weights.wrong))
      score, group = weights.mean_logp(gap, mask), rollout.prompt.group
      shift = shift_of(score, group, right, wrong, margin, extremes)
      gap = gap + (shift * (up * right - down * wrong))[:, None]
    return (ratio(per_sequence(mask), advantage=gap, behaviour_logp=student),)

  return Method(
    rollout=rollouts.student(),
    weigh=weigh,
    claim=Converges() if margin is None else Nothing('wrong responses are lowered'),
    paper='arXiv:2605.03677',
  )
