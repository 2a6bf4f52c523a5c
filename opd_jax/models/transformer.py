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
from flax import nnx
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, Float, Int, PRNGKeyArray

from opd_jax.models import cache as caches
from opd_jax.models import context
from opd_jax.models.attention import Attention
from opd_jax.models.config import ModelConfig
from opd_jax.models.experts import ExpertMLP
from opd_jax.models.layers import GatedMLP, RMSNorm, rotary_table, weight
from opd_jax.sharding import Layout
from opd_jax.types import Params


def _keep_products(primitive, *arguments, **settings) -> bool:
  """Products of matrices, also of experts and of cuDNN's attention, which JAX's own policy does not know."""
  known = primitive.name.startswith(('ragged_dot', 'dot_product_attention_fwd'))
  return known or jax.checkpoint_policies.dots_with_no_batch_dims_saveable(
    primitive, *arguments, **settings
  )


POLICIES = {
  'dots': _keep_products,
  'full': jax.checkpoint_policies.nothing_saveable,
  'offload': jax.checkpoint_policies.save_and_offload_only_these_names(
    names_which_can_be_saved=[],
    names_which_can_be_offloaded=['layer input'],
    offload_src='device',
    offload_dst='pinned_host',
  ),
}

# Unroll up to this many layers: XLA:CPU runs a scan body on one thread and stacks its residuals.
SHALLOW = 4


class Block(nnx.Module):
  """Attention, then the MLP: each reads a normed copy of the states and adds its output to them."""

  def __init__(self, config: ModelConfig, layout: Layout, *, rngs: nnx.Rngs):
    self.attention_norm = RMSNorm(config.width, 'embed', config=config)
    self.attention = Attention(config, layout, rngs=rngs)
    self.mlp_norm = RMSNorm(config.width, 'embed', config=config)
    self.mlp = (ExpertMLP if config.experts else GatedMLP)(config, layout, rngs=rngs)

  def __call__(self, x, table, *, start, cache, layer):
    with jax.named_scope('attention'):
      mixed, cache = self.attention(
        self.attention_norm(x), table, start=start, cache=cache, layer=layer
      )
      x = x + mixed
    with jax.named_scope('mlp'):
      return x + self.mlp(self.mlp_norm(x)), cache


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
    make = lambda key: Block(config, layout, rngs=nnx.Rngs(key))
    keys = jax.random.split(rngs.params(), config.num_layers)
    # Stacked, it is one block whose parameters carry a leading axis of layers: `lax.scan` compiles it once.
    self.blocks: Any = (
      nnx.List([make(key) for key in keys]) if config.unroll else nnx.vmap(make)(keys)
    )
    self.final_norm = RMSNorm(config.width, 'embed', config=config)
    if not config.tied:
      self.unembed = Table(config, rngs=rngs)

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
    self, tokens: Int[Array, 'B T'], cache: caches.Cache
  ) -> tuple[Float[Array, 'B T D'], caches.Cache]:
    """Returns hidden states of the next T columns of rows whose past is in `cache`, and the cache with them added."""
    columns = cache.end[:, None] + jnp.arange(tokens.shape[1])
    x, table = self._embedded(tokens, positions_of(columns, cache.start))
    for number in range(self.config.num_layers):
      with jax.named_scope('layers'):
        x, grown = self._block(number)(x, table, start=cache.start, cache=cache, layer=number)
        assert grown is not None
        x, cache = self.layout.constrain(x, 'batch', 'length', 'width'), grown
    with jax.named_scope('final_norm'):
      return self.final_norm(x), caches.pinned(
        cache._replace(end=cache.end + tokens.shape[1]), self.layout
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
    block, stacked = (None, None) if self.config.unroll else nnx.split(self.blocks)

    def layer(carry, inputs):
      x, tapped = carry
      x = checkpoint_name(x, 'layer input')
      number, params = inputs
      module = self._block(number) if block is None else nnx.merge(block, params)
      x, _ = module(x, table, start=start, cache=None, layer=None)
      x = self.layout.constrain(x, 'batch', 'length', 'width')
      return (
        x,
        tuple(jnp.where(number == tap, x, old) for tap, old in zip(taps, tapped, strict=True)),
      ), None

    if self.config.remat != 'none':
      # Inside a scan the loop already keeps XLA from merging the recomputation with the forward pass.
      prevent_cse = self.config.unroll
      layer = jax.checkpoint(layer, policy=POLICIES[self.config.remat], prevent_cse=prevent_cse)
    carry = x, tuple(jnp.zeros_like(x) for _ in taps)
    with jax.named_scope('layers'):
      if block is not None:
        written_out = self.config.num_layers <= SHALLOW and self.config.remat == 'none'
        return jax.lax.scan(
          layer, carry, (jnp.arange(self.config.num_layers), stacked), unroll=written_out
        )[0]
      for number in range(self.config.num_layers):
        carry, _ = layer(carry, (number, None))
      return carry

  def _block(self, number: int) -> Block:
    if self.config.unroll:
      return self.blocks[number]
    block, stacked = nnx.split(self.blocks)
    return nnx.merge(block, jax.tree.map(lambda leaf: leaf[number], stacked))

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
  stacked = path[0] == 'blocks' and not config.unroll
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
      pick = lambda number: jax.tree.map(lambda leaf: leaf[number], params['blocks'])
      params = {**params, 'blocks': {number: pick(number) for number in range(config.num_layers)}}
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
