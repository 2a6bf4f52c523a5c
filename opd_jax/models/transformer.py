"""Floor 1. The decoder: tokens in, hidden states out; the head is handed out, never applied here.

A model at rest is a `ModelConfig` and a plain pytree of parameters. `bind` joins them (and a layout)
into a module, inside `jit`, at no cost:

    params = init(config, layout, jax.random.key(0))
    hidden, _ = bind(config, layout, params)(tokens)
    logits = logits_of(hidden, bind(config, layout, params).head())
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int, PRNGKeyArray

from opd_jax.models import cache as caches
from opd_jax.models.attention import Attention
from opd_jax.models.config import ModelConfig
from opd_jax.models.experts import ExpertMLP
from opd_jax.models.layers import GatedMLP, RMSNorm, rotary_table, weight
from opd_jax.sharding import Layout
from opd_jax.types import Params

POLICIES = {
  'dots': jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
  'full': jax.checkpoint_policies.nothing_saveable,
}


class Block(nnx.Module):
  """Attention, then the MLP, each on a normed copy and added back."""

  def __init__(self, config: ModelConfig, layout: Layout, *, rngs: nnx.Rngs):
    self.attention_norm = RMSNorm(config.width, 'embed', config=config)
    self.attention = Attention(config, layout, rngs=rngs)
    self.mlp_norm = RMSNorm(config.width, 'embed', config=config)
    self.mlp = (ExpertMLP if config.experts else GatedMLP)(config, layout, rngs=rngs)

  def __call__(self, x, table, *, start, cache, layer):
    with jax.named_scope('attention'):
      mixed, cache = self.attention(self.attention_norm(x), table, start=start, cache=cache, layer=layer)
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
    # One block whose parameters carry a leading axis of layers: `lax.scan` compiles it once.
    keys = jax.random.split(rngs.params(), config.num_layers)
    self.blocks = nnx.vmap(lambda key: Block(config, layout, rngs=nnx.Rngs(key)))(keys)
    self.final_norm = RMSNorm(config.width, 'embed', config=config)
    if not config.tied:
      self.unembed = Table(config, rngs=rngs)

  def __call__(
    self,
    tokens: Int[Array, 'B T'],
    *,
    start: Int[Array, ' B'] | None = None,
    cache: caches.Cache | None = None,
  ) -> tuple[Float[Array, 'B T D'], caches.Cache | None]:
    """Hidden states after the last norm; hidden[:, t] predicts tokens[:, t + 1].

    Args:
      tokens: without a cache, whole rows; with one, the next T columns of each.
      start: columns of left padding per row; None when there are none. A cache brings its own.
      cache: continues the rows in it; comes back longer by T columns.
    """
    first, start = (0, start) if cache is None else (cache.end[:, None], cache.start)
    self.config.check_length(tokens.shape[1], who='transformer')
    columns = first + jnp.broadcast_to(jnp.arange(tokens.shape[1]), tokens.shape)
    positions = columns if start is None else jnp.maximum(columns - start[:, None], 0)
    with jax.named_scope('embed'):
      x = self.embed.table[...][tokens].astype(self.config.dtype)
      x = self.layout.constrain(x, 'batch', 'length', 'width')
    x, cache = self._layers(x, rotary_table(positions, self.config), start, cache)
    if cache is not None:
      cache = caches.pinned(cache._replace(end=cache.end + tokens.shape[1]), self.layout)
    with jax.named_scope('final_norm'):
      return self.final_norm(x), cache

  def _layers(self, x, table, start, cache):
    block, stacked = nnx.split(self.blocks)

    def layer(carry, inputs):
      x, cache = carry
      number, params = inputs
      x, cache = nnx.merge(block, params)(x, table, start=start, cache=cache, layer=number)
      return (self.layout.constrain(x, 'batch', 'length', 'width'), cache), None

    if self.config.remat != 'none':
      # Inside a scan the loop itself keeps the recomputation from being merged away.
      layer = jax.checkpoint(layer, policy=POLICIES[self.config.remat], prevent_cse=False)
    with jax.named_scope('layers'):
      numbers = jnp.arange(self.config.num_layers)
      (x, cache), _ = jax.lax.scan(layer, (x, cache), (numbers, stacked))
    return x, cache

  def head(self) -> Float[Array, 'D V']:
    """The matrix that turns hidden states into logits, in the dtype of activations."""
    table = self.embed.table if self.config.tied else self.unembed.table
    return table[...].astype(self.config.dtype).T


def logits_of(hidden: Float[Array, '*N D'], head: Float[Array, 'D V']) -> Float[Array, '*N V']:
  """Float32 logits. For a few positions at a time: whole batches go through `losses/vocabulary.py`."""
  with jax.named_scope('head'):
    return jnp.matmul(hidden, head, preferred_element_type=jnp.float32)


@functools.lru_cache(maxsize=64)
def _skeleton(config: ModelConfig, layout: Layout) -> tuple[Any, Any]:  # graphdef, state
  model = nnx.eval_shape(lambda: Transformer(config, layout, rngs=nnx.Rngs(0)))
  return nnx.split(model)


def axes(config: ModelConfig, layout: Layout) -> Params:
  """The logical axes of every parameter, in the tree of `abstract`; a stack of layers begins with 'layers'."""

  def names(path, variable):
    return (('layers',) if path[0] == 'blocks' else ()) + variable.get_metadata('axes')

  return nnx.to_pure_dict(nnx.map_state(names, _skeleton(config, layout)[1]))


def abstract(config: ModelConfig, layout: Layout) -> Params:
  """Shapes, dtypes and shardings of every parameter. No memory is touched."""

  def leaf(path, variable):
    names = (('layers',) if path[0] == 'blocks' else ()) + variable.get_metadata('axes')
    sharding = layout.fitted(variable.shape, names, what='parameter ' + '/'.join(map(str, path)))
    return jax.ShapeDtypeStruct(variable.shape, variable.dtype, sharding=sharding)

  return nnx.to_pure_dict(nnx.map_state(leaf, _skeleton(config, layout)[1]))


def init(config: ModelConfig, layout: Layout, key: PRNGKeyArray) -> Params:
  """Random parameters, born in their shards. The same key gives the same numbers on any layout."""

  def make(key):
    return nnx.to_pure_dict(nnx.split(Transformer(config, layout, rngs=nnx.Rngs(key)))[1])

  shardings = jax.tree.map(lambda leaf: leaf.sharding, abstract(config, layout))
  return jax.jit(make, out_shardings=shardings)(key)


def bind(config: ModelConfig, layout: Layout, params: Params) -> Transformer:
  """The module over these parameters. Free: call it inside `jit`."""
  return nnx.merge(_skeleton(config, layout)[0], params)


def count(config: ModelConfig, layout: Layout) -> int:
  """Number of parameters; tied tables count once."""
  return sum(leaf.size for leaf in jax.tree.leaves(abstract(config, layout)))
