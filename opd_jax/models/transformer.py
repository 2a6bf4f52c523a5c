"""Floor 1. The decoder: maps tokens to hidden states; whoever needs logits applies its head.

A stored model is a `ModelConfig` and a plain pytree of parameters. `bind` joins them (and a layout)
into a module, inside `jit`, at no cost:

    params = init(config, layout, jax.random.key(0))
    hidden = bind(config, layout, params)(tokens)
    logits = logits_of(hidden, bind(config, layout, params).head())
"""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, Float, Int, PRNGKeyArray

from opd_jax.models import cache as caches
from opd_jax.models import context
from opd_jax.models.blocks import POLICIES, Block
from opd_jax.models.config import ModelConfig
from opd_jax.models.layers import RMSNorm, rotary_table, weight
from opd_jax.sharding import Layout
from opd_jax.types import Params

# Unroll up to this many layers: XLA:CPU runs a scan body on one thread and stacks its residuals.
SHALLOW = 4


class Table(nnx.Module):
  """V rows of D numbers: the embedding, or an untied head."""

  def __init__(self, config: ModelConfig, *, rngs: nnx.Rngs):
    shape, axes = (config.vocab_size, config.width), ('vocab', 'embed')
    # Rows of norm one: logits of a random model are of order one, tied or not.
    self.table = weight(rngs, shape[::-1], axes[::-1], inputs=1, dtype=config.param_dtype)
    self.table = nnx.Param(self.table[...].T, axes=axes)


class Transformer(nnx.Module):
  """Every family of `presets.py` is this class with other numbers."""

  def __init__(self, config: ModelConfig, layout: Layout, *, rngs: nnx.Rngs):
    self.config, self.layout = config, layout
    self.embed = Table(config, rngs=rngs)
    keys = jax.random.split(rngs.params(), config.num_layers)
    self.blocks: Any = self._made('blocks', keys)
    if config.delta is not None:
      self.delta_blocks: Any = self._made('delta_blocks', keys)
    self.final_norm = RMSNorm(config.width, 'embed', config=config)
    if not config.tied:
      self.unembed = Table(config, rngs=rngs)

  def _made(self, stack: str, keys) -> Any:
    """Stacked, it is one block whose parameters carry a leading axis of layers: `lax.scan` compiles it once."""
    make = lambda key: Block(
      self.config, self.layout, attends=stack == 'blocks', rngs=nnx.Rngs(key)
    )
    keys = keys[np.asarray(self.config.stacks()[stack])]
    return nnx.List([make(key) for key in keys]) if self.config.unroll else nnx.vmap(make)(keys)

  def __call__(
    self, tokens: Int[Array, 'B T'], *, start: Int[Array, ' B'] | None = None
  ) -> Float[Array, 'B T D']:
    """Hidden states after the last norm; hidden[:, t] predicts tokens[:, t + 1].

    Args:
      tokens: whole rows.
      start: columns of left padding per row; None when there are none.
    """
    columns = jnp.broadcast_to(jnp.arange(tokens.shape[1]), tokens.shape)
    x, _ = self._stack(*self._embedded(tokens, positions_of(columns, start)), start, ())
    with jax.named_scope('final_norm'):
      return self.final_norm(x)

  def extend(
    self,
    tokens: Int[Array, 'B T'],
    cache: caches.Cache,
    count: Int[Array, ' B'] | None = None,
  ) -> tuple[Float[Array, 'B T D'], caches.Cache]:
    """Returns hidden states of the next T columns of rows whose past is in `cache`, and the cache with them added.

    Args:
      count: how many of the columns belong to each row; the others may be overwritten by the next call. None: all.
    """
    columns = cache.end[:, None] + jnp.arange(tokens.shape[1])
    x, table = self._embedded(tokens, positions_of(columns, cache.start))
    for number in range(self.config.num_layers):
      with jax.named_scope('layers'):
        at = self.config.place(number)[1]
        x, grown = self._block(number)(
          x, table, start=cache.start, cache=cache, layer=at, count=count
        )
        assert grown is not None
        x, cache = self.layout.constrain(x, 'batch', 'length', 'width'), grown
    with jax.named_scope('final_norm'):
      return self.final_norm(x), caches.pinned(
        cache._replace(end=cache.end + (tokens.shape[1] if count is None else count)), self.layout
      )

  def trace(
    self, tokens: Int[Array, 'B T'], *, layers: tuple[int, ...] = ()
  ) -> tuple[Float[Array, 'B T D'], tuple[Float[Array, 'B T D'], ...]]:
    """Returns hidden states of whole rows after the last norm, and the output of each of `layers`."""
    columns = jnp.broadcast_to(jnp.arange(tokens.shape[1]), tokens.shape)
    x, tapped = self._stack(*self._embedded(tokens, columns), None, layers)
    with jax.named_scope('final_norm'):
      return self.final_norm(x), tapped

  def _embedded(self, tokens, positions):
    context.check(self.layout, tokens.shape[1])
    if self.layout.size('length') == 1:  # else rows are padded to what devices share
      self.config.check_length(tokens.shape[1], who='transformer')
    with jax.named_scope('embed'):
      x = self.embed.table[...][tokens].astype(self.config.dtype)
      return self.layout.constrain(x, 'batch', 'length', 'width'), rotary_table(
        positions, self.config
      )

  def _stack(self, x, table, start, taps: tuple[int, ...]):
    """Runs all layers over whole rows; returns the outputs of the layers `taps` as well."""

    def layer(carry, number, graph, params):
      x, tapped = carry
      x = checkpoint_name(x, 'layer input')
      module = self._block(number) if graph is None else nnx.merge(graph, params)
      x, _ = module(x, table, start=start, cache=None, layer=None)
      x = self.layout.constrain(x, 'batch', 'length', 'width')
      kept = zip(taps, tapped, strict=True)
      return x, tuple(jnp.where(number == tap, x, old) for tap, old in kept)

    if self.config.remat != 'none':
      # Inside a scan the loop already keeps XLA from merging the recomputation with the forward pass.
      layer = jax.checkpoint(
        layer,
        policy=POLICIES[self.config.remat],
        prevent_cse=self.config.unroll,
        static_argnums=(1, 2) if self.config.unroll else (2,),
      )
    carry = x, tuple(jnp.zeros_like(x) for _ in taps)
    with jax.named_scope('layers'):
      if not self.config.unroll:
        return self._scanned(layer, carry)
      for number in range(self.config.num_layers):
        carry = layer(carry, number, None, None)
      return carry

  def _scanned(self, layer, carry):
    """All layers, a period of them at a time: of one layer, or of as many as there are until the next attention."""
    config, stacks = self.config, self.config.stacks()
    period = config.num_layers // len(stacks['blocks'])
    graphs, params = {}, {}
    for stack in stacks:
      graphs[stack], params[stack] = nnx.split(getattr(self, stack))
      if stack != 'blocks':  # of attention a period has one layer
        by_period = lambda leaf: leaf.reshape(-1, period - 1, *leaf.shape[1:])
        params[stack] = jax.tree.map(by_period, params[stack])

    def one(carry, inputs):
      first, params = inputs
      for offset in range(period):
        stack, at = config.place(offset)
        own = params[stack]
        if stack != 'blocks':
          own = jax.tree.map(lambda leaf, at=at: leaf[at], own)
        carry = layer(carry, first + offset, graphs[stack], own)
      return carry, None

    firsts = jnp.arange(0, config.num_layers, period)
    written_out = config.num_layers <= SHALLOW and config.remat == 'none'
    return jax.lax.scan(one, carry, (firsts, params), unroll=written_out)[0]

  def _block(self, number: int) -> Block:
    stack, at = self.config.place(number)
    blocks = getattr(self, stack)
    if self.config.unroll:
      return blocks[at]
    block, stacked = nnx.split(blocks)
    return nnx.merge(block, jax.tree.map(lambda leaf: leaf[at], stacked))

  def layers(self) -> list[Block]:
    """Every layer, in order."""
    return [self._block(number) for number in range(self.config.num_layers)]

  def head(self) -> Float[Array, 'D V']:
    """The matrix that turns hidden states into logits, in the type it is stored in."""
    table = self.embed.table if self.config.tied else self.unembed.table
    return table[...].T


def positions_of(columns: Int[Array, 'B T'], start: Int[Array, ' B'] | None) -> Int[Array, 'B T']:
  """Absolute positions: the first token of a row has position 0, wherever its column."""
  return columns if start is None else jnp.maximum(columns - start[:, None], 0)


def logits_of(hidden: Float[Array, '*N D'], head: Float[Array, 'D V']) -> Float[Array, '*N V']:
  """Logits, float32 at least. For a few positions at a time: whole batches go through `losses/vocabulary.py`."""
  with jax.named_scope('head'):
    wide = jnp.promote_types(jnp.float32, hidden.dtype)
    return jnp.matmul(hidden, head.astype(hidden.dtype), preferred_element_type=wide)


@functools.lru_cache(maxsize=64)
def _skeleton(config: ModelConfig, layout: Layout) -> tuple[Any, Any]:  # graphdef, state
  model = nnx.eval_shape(lambda: Transformer(config, layout, rngs=nnx.Rngs(0)))
  return nnx.split(model)


def _names(path: tuple, variable: nnx.Variable, config: ModelConfig) -> tuple[str | None, ...]:
  """Logical axes of a parameter, None where it is never cut; those of a stack of layers begin with 'layers'."""
  stacked = path[0] in config.stacks() and not config.unroll
  return (('layers',) if stacked else ()) + variable.get_metadata('axes')


def abstract(config: ModelConfig, layout: Layout) -> Params:
  """Shapes, dtypes and shardings of every parameter. No memory is touched."""

  def leaf(path, variable):
    what = 'parameter ' + '/'.join(map(str, path))
    sharding = layout.fitted(variable.shape, _names(path, variable, config), what=what)
    return jax.ShapeDtypeStruct(variable.shape, variable.dtype, sharding=sharding)

  return nnx.to_pure_dict(nnx.map_state(leaf, _skeleton(config, layout)[1]))


def decoding_config(config: ModelConfig) -> ModelConfig:
  """Returns the config that decoding uses: unrolled layers, and weights stored in the type of the activations."""
  return dataclasses.replace(config, unroll=True, param_dtype=config.dtype)


def unrolled(config: ModelConfig, layout: Layout, params: Params) -> tuple[ModelConfig, Params]:
  """Converts a model, or the shapes of one, to its `decoding_config`."""
  target = decoding_config(config)
  if target == config:
    return config, params
  if any(isinstance(leaf, jax.ShapeDtypeStruct) for leaf in jax.tree.leaves(params)):
    return target, abstract(target, layout)
  return target, _unroller(config, target, layout)(params)


@functools.lru_cache(maxsize=16)
def _unroller(config: ModelConfig, target: ModelConfig, layout: Layout) -> Any:
  """The program of `unrolled`, compiled once however often the weights change."""
  leaves = abstract(target, layout)

  def split(params):
    if not config.unroll:
      pick = lambda stack, at: jax.tree.map(lambda leaf: leaf[at], params[stack])
      apart = {
        stack: {at: pick(stack, at) for at in range(len(layers))}
        for stack, layers in config.stacks().items()
      }
      params = {**params, **apart}
    return jax.tree.map(lambda leaf, shape: leaf.astype(shape.dtype), params, leaves)

  return jax.jit(split, out_shardings=jax.tree.map(lambda leaf: leaf.sharding, leaves))


def init(config: ModelConfig, layout: Layout, key: PRNGKeyArray) -> Params:
  """Draws random parameters directly into their shards. The same key gives the same numbers on any layout."""
  return _maker(config, layout)(key)


@functools.lru_cache(maxsize=16)
def _maker(config: ModelConfig, layout: Layout) -> Any:
  """The program of `init`, compiled once for all keys."""

  def make(key):
    return nnx.to_pure_dict(nnx.split(Transformer(config, layout, rngs=nnx.Rngs(key)))[1])

  shardings = jax.tree.map(lambda leaf: leaf.sharding, abstract(config, layout))
  return jax.jit(make, out_shardings=shardings)


def bind(config: ModelConfig, layout: Layout, params: Params) -> Transformer:
  """The module over these parameters. Free: call it inside `jit`."""
  return nnx.merge(_skeleton(config, layout)[0], params)


def count(config: ModelConfig, layout: Layout) -> int:
  """Number of parameters; tied tables count once."""
  return sum(leaf.size for leaf in jax.tree.leaves(abstract(config, layout)))
