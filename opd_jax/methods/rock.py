"""Rock tokens, arXiv:2605.09253: types of tokens that never come to agree are left alone."""

from collections.abc import Sequence

import jax.numpy as jnp
from jaxtyping import Array, Float

from opd_jax import rollouts
from opd_jax.claims import Claim, Converges, Nothing, Unbiased
from opd_jax.losses import selectors
from opd_jax.losses.divergences import ReverseKL
from opd_jax.losses.supports import FULL, Support
from opd_jax.losses.terms import DivergenceTerm
from opd_jax.method import Evidence, Method, WeightedTerms, required_by

VARIANTS = {
  'frozen type': {'ids': (0,)},
  'as described': {'ids': (0,), 'following': False},
  'random': {'ids': (0,), 'at_random': True},
}


def _claim(ids: tuple[int, ...], at_random: bool, support: Support) -> Claim:
  if support != FULL or (ids and not at_random):
    return Nothing('some types of tokens are not learnt from' if ids else 'only a part is compared')
  return Converges() if ids else Unbiased(divergence=ReverseKL())


def rock(
  *,
  ids: Sequence[int] = (),
  weight: float = 0.0,
  following: bool = True,
  support: Support = FULL,
  at_random: bool = False,
) -> Method:
  r"""Reverse KL without the types of tokens that keep a high divergence throughout.

      loss = Σ_t w_t KL(p ‖ q) / max(Σ_t w_t, 1),      w_t = λ where y_t is a rock, else 1

  arXiv:2605.09253, λ = 0. Rocks are found beforehand: the hundred types of the largest frequency times mean KL over
  responses of a trained student, without the five most frequent. The released code tests the token that is *read* at a
  position, so it leaves out the token that follows a rock; its search is of the rocks themselves, as the paper says.
  Departs: windows of high divergence around a rock, which the code does not have either, are left out; the
  last token of a prompt is no rock, where the code tests it too.

  Args:
    ids: the rocks; without any it is the reverse KL.
    weight: λ.
    following: as released; False is as described: the rocks themselves.
    support: where the KL is taken.
    at_random: the control: as many tokens of every response, drawn.
  """
  ids = tuple(ids)
  if weight < 0 or min(ids, default=0) < 0:
    raise ValueError(f'rock: weight and ids must not be negative, got {weight} and {ids}.')
  term = DivergenceTerm(divergence=ReverseKL(), support=support)

  def weighed(evidence: Evidence) -> Float[Array, 'B R']:
    mask = evidence.mask
    rocks = jnp.isin(evidence.rollout.response, jnp.asarray(ids, jnp.int32))
    if following:
      rocks = jnp.pad(rocks, ((0, 0), (1, 0)))[:, :-1]
    rocks = mask & rocks
    if at_random:
      rocks = selectors.drawn_like(evidence.key, rocks, mask)
    return jnp.where(rocks, weight, 1.0) * mask

  def weigh(evidence: Evidence) -> WeightedTerms:
    counts = weighed(evidence)
    return (term(counts / jnp.maximum(counts.sum(), 1.0)),)

  return Method(
    rollout=rollouts.student(),
    needs=required_by(term),
    weigh=weigh,
    claim=_claim(ids, at_random, support),
    paper='arXiv:2605.09253',
  )
