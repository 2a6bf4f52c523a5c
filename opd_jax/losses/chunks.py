"""Floor 1. Chunks: the least stretches of a text that the tokens of two models both cut at their ends."""

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from opd_jax.types import AnyArray


def sums(x: Float[AnyArray, 'B R'], chunk: Int[AnyArray, 'B R']) -> Float[Array, 'B R']:
  """The sum over the chunk that a token is in, at each of its tokens; zero where there is none.

  >>> sums(jnp.array([[1.0, 2.0, 4.0, 8.0]]), jnp.array([[0, 1, 1, -1]])).tolist()
  [[1.0, 6.0, 6.0, 0.0]]
  """
  x, chunk = jnp.asarray(x), jnp.asarray(chunk)
  rows, inside = jnp.arange(len(x))[:, None], chunk >= 0
  there = jnp.where(inside, chunk, x.shape[1])
  total = jnp.zeros_like(x).at[rows, there].add(x, mode='drop')
  return jnp.where(inside, jnp.take_along_axis(total, jnp.where(inside, chunk, 0), axis=1), 0.0)


def sizes(mask: Bool[AnyArray, 'B R'], chunk: Int[AnyArray, 'B R']) -> Float[Array, 'B R']:
  """Tokens that count in the chunk of each token."""
  return sums(jnp.asarray(mask).astype(jnp.result_type(float)), chunk)


def first(chunk: Int[AnyArray, 'B R']) -> Bool[Array, 'B R']:
  """Where a chunk begins: both models have read the same text."""
  chunk = jnp.asarray(chunk)
  before = jnp.pad(chunk[:, :-1], ((0, 0), (1, 0)), constant_values=-1)
  return (chunk >= 0) & (chunk != before)


def last(chunk: Int[AnyArray, 'B R']) -> Bool[Array, 'B R']:
  """Where a chunk ends."""
  chunk = jnp.asarray(chunk)
  behind = jnp.pad(chunk[:, 1:], ((0, 0), (0, 1)), constant_values=-1)
  return (chunk >= 0) & (chunk != behind)
