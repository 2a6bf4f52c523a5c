"""Floor 1. Which tokens of a response or of a batch count: masks, and as many tokens at random as a control.

Ties go to the earlier token, and no choice looks at how the batch is cut.
"""

from fractions import Fraction

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray

from opd_jax.types import AnyArray

Mask = Bool[AnyArray, 'B R']
Tokens = Float[AnyArray, 'B R']


def check_fraction(name: str, fraction: float) -> None:
  if not 0.0 <= fraction <= 1.0:
    raise ValueError(f'{name}: a fraction lies between 0 and 1, got {fraction}.')


def before(x: Tokens) -> Tokens:
  """Σ of what stands strictly before a position."""
  return jnp.cumsum(x, axis=1) - x


def position_of(mask: Mask) -> Tokens:
  """0, 1, 2 … along the tokens that count."""
  return before(mask.astype(float))


def length_of(mask: Mask) -> Float[Array, 'B 1']:
  return mask.sum(axis=1, keepdims=True).astype(float)


# --- by position ----------------------------------------------------------------------------------


def parts_of(fraction: float, largest: int, *, up: bool) -> np.ndarray:
  """fraction · n for n = 0 … largest as whole numbers, rounded up or down: exactly, whatever the type of a mask's sum.

  The fraction is the simplest one that the float stands for: 0.3 is 3 / 10. No product of floats would do: in float32
  0.3 · 50 lies above 15, and 0.999 · 9,999 = 9,989.001 is within rounding of 9,989.
  """
  exact = Fraction(float(fraction)).limit_denominator(10**6)
  products = exact.numerator * np.arange(largest + 1, dtype=np.int64)
  return -(-products // exact.denominator) if up else products // exact.denominator


def part_of(mask: Mask, fraction: float) -> Float[Array, 'B 1']:
  """ceil(fraction · n) of every response, n its tokens that count."""
  parts = jnp.asarray(parts_of(fraction, mask.shape[1], up=True), jnp.int32)
  return parts[mask.sum(axis=1, keepdims=True)].astype(float)


def first(mask: Mask, *, fraction: float) -> Tokens:
  """1 on the first `fraction` of a response's tokens (rounded up), 0 behind."""
  check_fraction('selectors.first', fraction)
  return (position_of(mask) < part_of(mask, fraction)).astype(float)


def last(mask: Mask, *, fraction: float) -> Tokens:
  """1 on the last `fraction` of a response's tokens (rounded up), 0 before."""
  check_fraction('selectors.last', fraction)
  return (position_of(mask) >= length_of(mask) - part_of(mask, fraction)).astype(float)


# --- by confidence and disagreement ---------------------------------------------------------------


def _highest(score: Tokens, mask: Mask, wanted: int | Float[AnyArray, 'B 1']) -> Mask:
  """The so many tokens of each response that score highest; ties go to the earlier token."""
  order = jnp.argsort(jnp.where(mask, -score, jnp.inf), axis=1, stable=True)
  rank = jnp.argsort(order, axis=1, stable=True)
  return mask & (rank < wanted)


def top_fraction(score: Tokens, mask: Mask, *, fraction: float) -> Tokens:
  """1 on the ceil(fraction · n) tokens of a response that score highest, at least one; ties go to the earlier token."""
  check_fraction('selectors.top_fraction', fraction)
  wanted = jnp.maximum(part_of(mask, fraction), 1.0)
  return _highest(score, mask, wanted).astype(float)


def best_of_the_batch(
  score: Tokens, mask: Mask, row: Int[AnyArray, ' B'], *, fraction: float
) -> Bool[Array, 'B R']:
  """The part of all tokens of the batch that scores highest, rounded up, at least one.

  Ties go to the row of lower number, then to the earlier token.
  """
  order = jnp.argsort(row)
  flat = lambda x: x[order].reshape(1, -1)
  chosen = top_fraction(flat(score), flat(mask), fraction=fraction)
  return (chosen.reshape(mask.shape) > 0)[jnp.argsort(order)]


def top_count(score: Tokens, mask: Mask, *, count: int) -> Tokens:
  """The same with the `count` tokens of a response that score highest, all of them where it has fewer.

  With the position as a score these are the last ones, with random numbers as many of any.
  """
  if count < 1:
    raise ValueError(f'selectors.top_count: at least one token, got {count}.')
  return _highest(score, mask, count).astype(float)


def random_mask(key: PRNGKeyArray, mask: Mask, *, fraction: float) -> Tokens:
  """The same budget as `top_fraction`, spent at random: the control that every selector needs."""
  return top_fraction(jax.random.uniform(key, mask.shape), mask, fraction=fraction)


def drawn_like(key: PRNGKeyArray, chosen: Mask, mask: Mask) -> Mask:
  """As many tokens of every response as are chosen, drawn: the control of a selector whose budget differs by row."""
  wanted = (mask & chosen).sum(axis=1, keepdims=True).astype(float)
  return _highest(jax.random.uniform(key, mask.shape), mask, wanted)
