"""Floor 1. Grouped-query attention, with or without a cache, and the choice of kernel."""

import dataclasses
import functools
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import NamedSharding, PartitionSpec
from jaxtyping import Array, Bool, Float, Int

from opd_jax.models import cache as caches
from opd_jax.models import context, int8, lora
from opd_jax.models.config import ModelConfig
from opd_jax.models.layers import RMSNorm, bias, rotate, weight
from opd_jax.sharding import Layout

Kernel = Literal['xla', 'cudnn', 'splash']
SPLASH_BLOCK = 512
SPLASH_LANES = 128  # the kernel's columns are multiples of it
SPLASH_LONG = 4096  # columns from which on whole blocks are worth their padding


def kernel(platform: str, dtype: str, *, length: int, head_dim: int, masked: bool) -> Kernel:
  """Returns the fastest self-attention kernel of this platform; 'xla' runs everywhere."""
  if (
    platform == 'gpu' and dtype in ('bfloat16', 'float16') and head_dim % 8 == 0 and head_dim <= 128
  ):
    # cuDNN reads a mask as a bias, and its backward pass then needs an even length.
    return 'cudnn' if not masked or length % 2 == 0 else 'xla'
  return 'splash' if platform == 'tpu' and length >= SPLASH_LANES else 'xla'


def splash_columns(length: int) -> int:
  """Columns that the TPU kernel is given: padding costs less than attention that writes its scores out."""
  multiple = SPLASH_BLOCK if length > SPLASH_LONG else SPLASH_LANES
  return -(-length // multiple) * multiple


def causal_mask(
  columns: Int[Array, 'B T'], start: Int[Array, ' B'], length: int
) -> Bool[Array, 'B 1 T S']:
  """Returns True where a column may attend to a key: from its row's `start` up to the column itself."""
  keys = jnp.arange(length)
  seen = (keys <= columns[..., None]) & (keys >= start[:, None, None])
  return seen[:, None]


def _flash(heads: int, columns: np.ndarray, length: int, *, shards: int = 1) -> Any:
  """The TPU flash kernel: causal, grouped.

  Args:
    heads: on a device.
    columns: of the queries.
    length: columns of the keys.
    shards: devices that share the queries.
  """
  from jax.experimental.pallas.ops.tpu import splash_attention as splash  # TPU only, slow to import

  here = len(columns) // shards
  block = next(size for size in (SPLASH_BLOCK, 256, 128) if here % size == 0)
  sizes = splash.BlockSizes(
    block_q=block, block_kv=block, block_kv_compute=block, block_q_dkv=block, block_kv_dkv=block,
    block_kv_dkv_compute=block, block_q_dq=block, block_kv_dq=block,
  )  # fmt: skip
  causal = splash.CausalMask((len(columns), length))
  causal.q_sequence = columns.astype(np.int32)
  mask = splash.MultiHeadMask([causal] * heads)
  return splash.make_splash_mha(mask, head_shards=1, q_seq_shards=shards, block_sizes=sizes)


def _flashed(flash, query, key, value, start, columns):
  """Calls the kernel; left padding is a segment of its own."""
  from jax.experimental.pallas.ops.tpu import splash_attention as splash

  segment = lambda columns: (columns >= start[:, None]).astype(jnp.int32)
  segments = splash.SegmentIds(segment(columns), segment(jnp.arange(key.shape[1])))
  heads_first = (jnp.swapaxes(x, 1, 2) for x in (query * query.shape[-1] ** -0.5, key, value))
  mixed: Any = jax.vmap(flash)(*heads_first, segments)
  return jnp.swapaxes(mixed, 1, 2)


def _splash(
  query: Float[Array, 'B T N H'],
  key: Float[Array, 'B T K H'],
  value: Float[Array, 'B T K H'],
  start: Int[Array, ' B'] | None,
  *,
  layout: Layout,
) -> Float[Array, 'B T N H']:
  """Attention by the TPU kernel. Columns are padded at the end, where causality hides them."""
  columns, heads = query.shape[1], query.shape[2] // layout.size('heads')
  length = splash_columns(columns)

  def local(query, key, value, start):
    room = ((0, 0), (0, length - columns), (0, 0), (0, 0))
    query, key, value = (jnp.pad(x, room) for x in (query, key, value))
    flash = _flash(heads, np.arange(length), length)
    return _flashed(flash, query, key, value, start, jnp.arange(length))[:, :columns]

  start = jnp.zeros(query.shape[:1], jnp.int32) if start is None else start
  if layout.is_single:
    return local(query, key, value, start)
  by_query = layout.spec('batch', 'length', 'heads', 'head_dim')
  by_key = layout.spec('batch', 'length', 'kv_heads', 'head_dim')
  specs = (by_query, by_key, by_key, layout.spec('batch'))
  return jax.shard_map(
    local, mesh=layout.mesh, in_specs=specs, out_specs=by_query, check_vma=False
  )(query, key, value, start)


def _over_columns(query, key, value, start, *, layout: Layout, chosen: Kernel):
  """Attention of rows whose columns lie on several devices."""
  length, pieces = query.shape[1], layout.size('length')
  if chosen == 'splash' and length % (pieces * SPLASH_LANES) == 0:
    columns = context.order(pieces, length).reshape(-1)
    flash = _flash(query.shape[2] // layout.size('heads'), columns, length, shards=pieces)
    cut = flash.manual_sharding_spec(
      NamedSharding(layout.mesh, PartitionSpec(None, layout.spec('length')[0]))
    )
    local = lambda query, key, value, start, here, flash: _flashed(
      flash, query, key, value, start, here
    )
    return context.spread(local, query, key, value, start, layout=layout, kernel=(flash, cut))
  name = 'xla' if chosen == 'splash' else chosen

  def masked(query, key, value, start, here, _):
    mask = causal_mask(jnp.broadcast_to(here, query.shape[:2]), start, length)
    return jax.nn.dot_product_attention(query, key, value, mask=mask, implementation=name)

  return context.spread(masked, query, key, value, start, layout=layout)


def attend(
  query: Float[Array, 'B T N H'],
  key: Float[Array, 'B T K H'],
  value: Float[Array, 'B T K H'],
  *,
  start: Int[Array, ' B'] | None,
  layout: Layout,
) -> Float[Array, 'B T N H']:
  """Causal attention of rows over themselves; `start` columns of each row are padding."""
  length = query.shape[1]
  platform = layout.mesh.devices.flat[0].platform
  cut = layout.size('length') > 1
  masked = start is not None or cut
  chosen = kernel(
    platform, query.dtype.name, length=length, head_dim=query.shape[-1], masked=masked
  )
  if (chosen != 'xla' or cut) and layout.size('heads') != layout.size('kv_heads'):
    # Fewer key-value heads than devices: each device gets its own copy of the one it needs.
    key, value = (jnp.repeat(x, query.shape[2] // x.shape[2], axis=2) for x in (key, value))
    layout = dataclasses.replace(
      layout, rules=(*layout.rules, ('kv_heads', dict(layout.rules)['heads']))
    )
  if cut:
    return _over_columns(query, key, value, start, layout=layout, chosen=chosen)
  if chosen == 'splash':
    return _splash(query, key, value, start, layout=layout)
  dot = functools.partial(jax.nn.dot_product_attention, query, key, value, implementation=chosen)
  if start is None:
    return dot(is_causal=True)
  columns = jnp.broadcast_to(jnp.arange(length), query.shape[:2])
  return dot(mask=causal_mask(columns, start, length))


def attend_cache(
  query: Float[Array, 'B T N H'], cache: caches.Cache, layer: int
) -> Float[Array, 'B T N H']:
  """Attention of the newest T columns over the whole cache, read in its stored order: reading bounds the speed."""
  rows, length, heads, size = query.shape
  keys, values = (x[layer].astype(query.dtype) for x in (cache.keys, cache.values))
  grouped = query.reshape(rows, length, keys.shape[1], -1, size)
  scores = (
    jnp.einsum('btkgh,bksh->bkgts', grouped, keys, preferred_element_type=jnp.float32) * size**-0.5
  )
  columns = cache.end[:, None] + jnp.arange(length)
  seen = causal_mask(columns, cache.start, cache.columns)[:, :, None]
  probs = jax.nn.softmax(jnp.where(seen, scores, jnp.finfo(scores.dtype).min), axis=-1)
  # Since jax 0.12 XLA:CPU sums a bfloat16 product in bfloat16 unless the result is float32; such a product cannot
  # transpose its result, so the axis moves afterwards.
  mixed = jnp.einsum(
    'bkgts,bksh->bkgth', probs.astype(query.dtype), values, preferred_element_type=jnp.float32
  )
  return jnp.moveaxis(mixed.astype(query.dtype), 3, 1).reshape(rows, length, heads, size)


class Attention(nnx.Module):
  """Queries of N heads read keys and values of K ≤ N heads."""

  def __init__(self, config: ModelConfig, layout: Layout, *, rngs: nnx.Rngs):
    self.layout = layout
    width, heads, kv_heads, size = (
      config.width,
      config.num_heads,
      config.num_kv_heads,
      config.head_dim,
    )
    dtype = config.param_dtype
    queries, keys = ('heads', 'head_dim'), ('kv_heads', 'head_dim')
    asked = 2 * size if config.gated else size  # a head's query, and behind it its gate
    self.query = weight(rngs, (width, heads, asked), ('embed', *queries), inputs=1, dtype=dtype)
    self.key = weight(rngs, (width, kv_heads, size), ('embed', *keys), inputs=1, dtype=dtype)
    self.value = weight(rngs, (width, kv_heads, size), ('embed', *keys), inputs=1, dtype=dtype)
    self.output = weight(rngs, (heads, size, width), (*queries, 'embed'), inputs=2, dtype=dtype)
    if config.qkv_bias:
      self.query_bias = bias((heads, size), queries, dtype=dtype)
      self.key_bias = bias((kv_heads, size), keys, dtype=dtype)
      self.value_bias = bias((kv_heads, size), keys, dtype=dtype)
    if config.qk_norm:
      self.query_norm = RMSNorm(size, 'head_dim', config=config)
      self.key_norm = RMSNorm(size, 'head_dim', config=config)
    inputs = {'query': 1, 'key': 1, 'value': 1, 'output': 2}
    lora.adapt(self, config.lora, inputs, rngs=rngs)
    if config.int8:
      int8.store(self, inputs)
    self.has_bias, self.has_norm, self.has_gate = config.qkv_bias, config.qk_norm, config.gated

  def _project(self, x: Float[Array, 'B T D'], name: str) -> Float[Array, 'B T heads H']:
    projected = jnp.einsum('btd,dnh->btnh', x, int8.matrix(self, name, x.dtype))
    projected = lora.adapted(self, name, x, projected)
    if self.has_bias:
      projected = projected + getattr(self, f'{name}_bias')[...].astype(x.dtype)
    return projected

  def __call__(
    self,
    x: Float[Array, 'B T D'],
    table: tuple[Array, Array],
    *,
    start: Int[Array, ' B'] | None,
    cache: caches.Cache | None,
    layer: int | None,
  ) -> tuple[Float[Array, 'B T D'], caches.Cache | None]:
    query, key, value = (self._project(x, name) for name in ('query', 'key', 'value'))
    gate = None
    if self.has_gate:
      query, gate = jnp.split(query, 2, axis=-1)
    if self.has_norm:
      query, key = self.query_norm(query), self.key_norm(key)
    query, key = rotate(query, table), rotate(key, table)
    query = self.layout.constrain(query, 'batch', 'length', 'heads', 'head_dim')
    if cache is not None and layer is not None:
      cache = caches.write(cache, layer, key, value)
    with jax.named_scope('attend'):
      if cache is not None and layer is not None and cache.columns > x.shape[1]:
        mixed = attend_cache(query, cache, layer)
      else:  # a call that fills the whole cache begins at its first column, so a row attends to itself only
        mixed = attend(query, key, value, start=start, layout=self.layout)
    if gate is not None:
      mixed = mixed * jax.nn.sigmoid(gate)
    # Contract one axis of heads x size: over two axes XLA:CPU transposes the weight in every decode step.
    output = int8.matrix(self, 'output', x.dtype).reshape(-1, x.shape[-1])
    mixed = mixed.reshape(*x.shape[:2], -1)
    return lora.adapted(self, 'output', mixed, mixed @ output), cache
