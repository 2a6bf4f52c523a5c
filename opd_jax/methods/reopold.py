"""REOPOLD, arXiv:2603.11137: gaps with a floor, and later only the tokens that the student is unsure of."""

import math

import jax.numpy as jnp
from jaxtyping import Bool

from opd_jax import rollouts
from opd_jax.claims import Claim, Converges, Nothing
from opd_jax.losses import advantages, selectors
from opd_jax.losses.normalisers import per_token
from opd_jax.losses.terms import ClippedRatio
from opd_jax.method import Evidence, Method, Requirements, WeightedTerms
from opd_jax.types import AnyArray, ScoreRequest

VARIANTS = {
  'floor only': {'fraction': 1.0},
  'selection from the start': {'switch': 0},
  'random selection': {'switch': 0, 'at_random': True},
}


def _claim(switch: int, fraction: float, at_random: bool) -> Claim:
  if fraction == 1.0 or at_random:
    return Converges()
  return Nothing(f'from step {switch} on tokens that the student is sure of are not learnt from')


def reopold(
  *,
  mixing: float = 0.17,
  switch: int = 100,
  fraction: float = 0.2,
  at_random: bool = False,
  clip: float = 0.2,
) -> Method:
  r"""OPD whose advantage has a floor; in its second stage, on the tokens where the student's entropy is highest.

      A_t = max( log q(y_t) - log p(y_t), log(λ / (1 - λ)) ),      loss = Σ_kept PPO( A_t ) / tokens kept

  arXiv:2603.11137, λ = 0.17: a floor of -1.6 nats, which a convex mixture of both models would have. Our sources
  do not give the step of the switch nor the share of tokens that is kept: 100 and a fifth of every response are ours.
  Another reading has the first stage select by the size of the gap.

  Args:
    mixing: λ, between 0 and ½.
    switch: the step at which the second stage begins.
    fraction: the part of every response that is kept then, rounded up; 1 keeps all.
    at_random: the control: as many tokens are kept, whatever the student's entropy.
    clip: of the ratio; it acts from the second update of a batch on.
  """
  if not 0 < mixing < 0.5 or not 0 < fraction <= 1:
    raise ValueError(
      f'reopold: mixing must lie between 0 and 0.5, fraction above 0 and at most 1; got {mixing}, {fraction}.'
    )
  ratio, floor = ClippedRatio(low=clip, high=clip), math.log(mixing / (1 - mixing))

  def kept(evidence: Evidence) -> Bool[AnyArray, 'B R']:
    if at_random:
      chosen = selectors.random_mask(evidence.key, evidence.mask, fraction=fraction)
    else:
      entropy = evidence.student.entropy
      chosen = selectors.top_fraction(entropy, evidence.mask, fraction=fraction)
    return jnp.where(evidence.step >= switch, chosen > 0, evidence.mask)

  def weigh(evidence: Evidence) -> WeightedTerms:
    logp = evidence.student.logp
    advantage = jnp.maximum(advantages.log_ratio(evidence.teacher.logp, logp), floor)
    return (ratio(per_token(kept(evidence)), advantage=advantage, behaviour_logp=logp),)

  return Method(
    rollout=rollouts.student(),
    needs=Requirements(student=ScoreRequest(entropy=True)),
    weigh=weigh,
    claim=_claim(switch, fraction, at_random),
    paper='arXiv:2603.11137',
  )
