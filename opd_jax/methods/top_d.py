"""TOP-D, arXiv:2607.04751: a teacher that is never far away, and returns whitened within a question's group."""

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from opd_jax import rollouts
from opd_jax.claims import Claim, Converges, Nothing
from opd_jax.losses import advantages, weights
from opd_jax.losses.normalisers import per_token
from opd_jax.losses.terms import ClippedRatio
from opd_jax.method import Evidence, Method, WeightedTerms
from opd_jax.types import AnyArray

Mask = Bool[AnyArray, 'B R']
Tokens = Float[AnyArray, 'B R']

VARIANTS = {
  'fraction 0.2': {'fraction': 0.2},
  'reward only': {'returns': False, 'whiten': False},
}


def returns_of(reward: Tokens, mask: Mask) -> Float[Array, 'B R']:
  """A token's reward, and the mean of those behind it."""
  counted = jnp.where(mask, reward, 0.0)
  behind = lambda x: x.sum(axis=1, keepdims=True) - jnp.cumsum(x, axis=1)
  return counted + behind(counted) / jnp.maximum(behind(mask.astype(counted.dtype)), 1.0)


def whitened_by_group(score: Tokens, mask: Mask, group: Int[AnyArray, ' B']) -> Float[Array, 'B R']:
  """Mean 0 and deviation 1 over all tokens of a group."""
  same = group[:, None] == group[None, :]
  by_row = lambda x: jnp.where(mask, x, 0.0).sum(axis=1)
  total = lambda x: jnp.where(same, by_row(x)[None, :], 0.0).sum(axis=1)[:, None]
  count = jnp.maximum(total(jnp.ones_like(score)), 1.0)
  centred = score - total(score) / count
  variance = total(jnp.square(centred)) / count
  return jnp.where(mask, centred / jnp.sqrt(jnp.maximum(variance, weights.TINY)), 0.0)


def _claim(returns: bool, whiten: bool) -> Claim:
  if returns:
    return Nothing('a token also answers for the mean of what comes later')
  return Nothing('a group is its own baseline') if whiten else Converges()


def top_d(
  *, fraction: float = 0.1, returns: bool = True, whiten: bool = True, clip: float = 0.2
) -> Method:
  r"""The reward of a teacher that the student is mixed into, which has a floor; with what comes later.

      r_t = log(a u_t + 1 - a),   u_t = (q / p)(y_t),      R_t = r_t + mean_{j>t} r_j,      loss = Σ PPO( A_t ) / tokens

  arXiv:2607.04751, a = 0.1; A is R less its mean, over its deviation, both over all tokens of a question's group. r is
  never below log(1 - a): the advantage of a Jensen-Shannon divergence, divided by 1 - a. The paper takes 16 updates a
  batch and compares with an OPD that takes one.

  Args:
    fraction: a, the part of the teacher.
    returns: False counts a token's own reward only.
    whiten: False takes R itself.
    clip: of the ratio; it acts from the second update of a batch on.
  """
  ratio = ClippedRatio(low=clip, high=clip)

  def weigh(evidence: Evidence) -> WeightedTerms:
    mask, student = evidence.mask, evidence.student.logp
    gap = advantages.log_ratio(evidence.teacher.logp, student)
    advantage = advantages.proximal(gap, fraction=fraction)
    if returns:
      advantage = returns_of(advantage, mask)
    if whiten:
      advantage = whitened_by_group(advantage, mask, evidence.rollout.prompt.group)
    return (ratio(per_token(mask), advantage=advantage, behaviour_logp=student),)

  return Method(
    rollout=rollouts.student(),
    weigh=weigh,
    claim=_claim(returns, whiten),
    paper='arXiv:2607.04751',
  )
