"""Floor 1. How alike two texts are, by the edits that turn one into the other; under `jit`, in C steps for C tokens."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from opd_jax.types import AnyArray


def similarity(
  one: Int[AnyArray, ' C'],
  other: Int[AnyArray, ' C'],
  length: Int[AnyArray, ''],
  other_length: Int[AnyArray, ''],
) -> Float[Array, '']:
  """1 - edit distance / the longer length, of the first `length` and `other_length` tokens of two texts."""
  column = jnp.arange(len(other) + 1)

  def step(before, token):
    replaced = before[:-1] + (token != other)
    reached = jnp.minimum(jnp.append(before[0] + 1, replaced), before + 1)
    after = column + jax.lax.cummin(reached - column)  # insertions
    return after, after

  _, rows = jax.lax.scan(step, column, one)
  distance = jnp.concatenate([column[None], rows])[length, other_length]
  return 1 - distance / jnp.maximum(jnp.maximum(length, other_length), 1)
