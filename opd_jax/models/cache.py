"""Floor 1. The key-value cache: its shape, its birth on a layout, and the one way to write into it."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from opd_jax.models.config import ModelConfig
from opd_jax.sharding import Layout

AXES = ('layers', 'batch', 'length', 'kv_heads', 'head_dim')


class Cache(NamedTuple):
  """Keys and values of S columns per row. A row is: `start` columns of padding, then tokens up to `end`.

  Two integers per row describe every mask: what follows `end` is the causal future, so rows may be
  left-padded, may have different lengths, and may be refilled alone.
  """

  keys: Float[Array, 'L B S K H']
  values: Float[Array, 'L B S K H']
  start: Int[Array, ' B']
  end: Int[Array, ' B']


def empty(config: ModelConfig, layout: Layout, *, length: int, start: Int[Array, ' B']) -> Cache:
  """A cache of `length` columns for rows whose first `start` columns will be padding."""
  config.check_length(length, who='cache')
  rows = start.shape[0]
  shape = (config.num_layers, rows, length, config.num_kv_heads, config.head_dim)
  sharding = layout.fitted(shape, AXES, what='the key-value cache')
  keys, values = (jnp.zeros(shape, config.dtype, device=sharding) for _ in range(2))
  everywhere = layout.sharding()
  end = jnp.zeros((rows,), jnp.int32, device=everywhere)
  return Cache(keys=keys, values=values, start=jax.device_put(start, everywhere), end=end)


def pinned(cache: Cache, layout: Layout) -> Cache:
  """Leaves a program as it came in: a cache that came back cut otherwise would be compiled for again."""
  keys, values = (layout.constrain(x, *AXES) for x in (cache.keys, cache.values))
  start, end = (layout.constrain(x, None) for x in (cache.start, cache.end))
  return Cache(keys=keys, values=values, start=start, end=end)


def write(cache: Cache, layer: Int[Array, ''], keys: Float[Array, 'B T K H'], values: Float[Array, 'B T K H']) -> Cache:
  """Puts T new columns of one layer at each row's own end. `end` itself moves once per forward pass."""

  def row(stack: Float[Array, 'L S K H'], new: Float[Array, 'T K H'], at: Int[Array, '']):
    return jax.lax.dynamic_update_slice(stack, new[None].astype(stack.dtype), (layer, at, 0, 0))

  # vmap keeps the batch a batch axis of the scatter, so a cache cut along B is written where it lies.
  rows = jax.vmap(row, in_axes=(1, 0, 0), out_axes=1)
  return cache._replace(keys=rows(cache.keys, keys, cache.end), values=rows(cache.values, values, cache.end))
