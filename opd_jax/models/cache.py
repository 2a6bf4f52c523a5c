"""Floor 1. The cache: keys and values, states of layers that keep one, and the one way to write into each."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from opd_jax.models.config import ModelConfig
from opd_jax.sharding import Layout

AXES = ('batch', 'kv_heads', 'length', 'head_dim')
RECENT, MEMORY = ('batch', None, 'mlp'), ('batch', 'heads', None, None)


class State(NamedTuple):
  """What a delta-net layer keeps of a row, however long it is."""

  recent: Float[Array, 'B W C']  # the last tokens before the convolution
  memory: Float[Array, 'B N K V']


class Cache(NamedTuple):
  """Keys and values of S columns per row. A row is: `start` columns of padding, then tokens up to `end`.

  Two integers per row describe every mask: what follows `end` is the causal future, so rows may be
  padded, may have different lengths, and may be refilled alone. Each layer has arrays of its own, with heads
  before columns: XLA would copy a stacked or interleaved cache whole for every token.
  """

  keys: tuple[Float[Array, 'B K S H'], ...]
  values: tuple[Float[Array, 'B K S H'], ...]
  start: Int[Array, ' B']
  end: Int[Array, ' B']
  states: tuple[State, ...] = ()  # of the layers that are not attention

  @property
  def columns(self) -> int:
    return self.keys[0].shape[2]


def empty(config: ModelConfig, layout: Layout, *, length: int, start: Int[Array, ' B']) -> Cache:
  """A cache of `length` columns for rows whose first `start` columns will be padding."""
  config.check_length(length, who='cache')
  if layout.size('length') > 1:
    raise ValueError(
      f'Layout: responses cannot be written where columns of a row are cut (context, {layout.size("length")} devices). '
      'Bind experiment.Experiment.sampling_layout, as experiments/layouts/context.gin does.'
    )
  shape = (start.shape[0], config.num_kv_heads, length, config.head_dim)
  sharding, everywhere = layout.fitted(shape, AXES, what='the key-value cache'), layout.sharding()
  stacks = config.stacks()
  zeros = lambda: tuple(jnp.zeros(shape, config.dtype, device=sharding) for _ in stacks['blocks'])
  states = tuple(_state(config, layout, start.shape[0]) for _ in stacks.get('delta_blocks', ()))
  end = jnp.zeros(start.shape, jnp.int32, device=everywhere)
  start = jax.device_put(start, everywhere)
  cache = Cache(keys=zeros(), values=zeros(), start=start, end=end, states=states)
  return pinned(cache, layout)  # inside a program, `device` says nothing


def _state(config: ModelConfig, layout: Layout, rows: int) -> State:
  delta, what = config.delta, 'the state of a delta-net layer'
  assert delta is not None
  recent = (rows, delta.kernel - 1, delta.mixed)
  memory = (rows, delta.value_heads, delta.key_dim, delta.value_dim)
  wide = jnp.promote_types(jnp.float32, config.dtype)
  return State(
    jnp.zeros(recent, config.dtype, device=layout.fitted(recent, RECENT, what=what)),
    jnp.zeros(memory, wide, device=layout.fitted(memory, MEMORY, what=what)),
  )


def remember(cache: Cache, layer: int, state: State) -> Cache:
  """Replaces the state of one layer."""
  return cache._replace(states=(*cache.states[:layer], state, *cache.states[layer + 1 :]))


def write(
  cache: Cache, layer: int, keys: Float[Array, 'B T K H'], values: Float[Array, 'B T K H']
) -> Cache:
  """Writes T new columns of one layer at each row's `end`; the forward pass advances `end` after the last layer."""

  def row(old: Float[Array, 'K S H'], new: Float[Array, 'T K H'], at: Int[Array, '']):
    return jax.lax.dynamic_update_slice(old, jnp.swapaxes(new, 0, 1).astype(old.dtype), (0, at, 0))

  def put(stack, new):
    # vmap keeps the batch a batch axis of the scatter, so each device writes into its own shard of B.
    return (*stack[:layer], jax.vmap(row)(stack[layer], new, cache.end), *stack[layer + 1 :])

  return cache._replace(keys=put(cache.keys, keys), values=put(cache.values, values))


def pinned(cache: Cache, layout: Layout) -> Cache:
  """Pins the cache's sharding; a changed output sharding recompiles the next call."""
  keys, values = (
    tuple(layout.constrain(x, *AXES) for x in xs) for xs in (cache.keys, cache.values)
  )
  start, end = (layout.constrain(x, None) for x in (cache.start, cache.end))
  states = tuple(
    State(layout.constrain(recent, *RECENT), layout.constrain(memory, *MEMORY))
    for recent, memory in cache.states
  )
  return Cache(keys=keys, values=values, start=start, end=end, states=states)
