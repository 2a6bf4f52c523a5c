"""Floor 1. Gated delta-net: a layer that keeps one matrix a head in place of the keys and values of every token.

For each token, with a decay g ≤ 0, a rate β in (0, 1), and query, key and value of a head:

    S ← e^g S        S ← S + k (β (v - Sᵀ k))ᵀ        o = Sᵀ q

A token at a time that is `step`; `in_chunks` computes the same for many with products of matrices, as in Qwen3.5.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float, Int

from opd_jax.models import cache as caches
from opd_jax.models import int8, lora
from opd_jax.models.config import ModelConfig
from opd_jax.models.layers import weight
from opd_jax.sharding import Layout

CHUNK = 64  # tokens whose influence on each other is one triangular system
HEADS = ('batch', 'length', 'heads', None)


class Given(NamedTuple):
  """What the recurrence reads of T tokens; float32 at least."""

  query: Float[Array, 'B T N K']
  key: Float[Array, 'B T N K']
  value: Float[Array, 'B T N V']
  decay: Float[Array, 'B T N']  # g
  rate: Float[Array, 'B T N']  # β


def step(
  given: Given, memory: Float[Array, 'B N K V']
) -> tuple[Float[Array, 'B 1 N V'], Float[Array, 'B N K V']]:
  """One token, and the memory after it."""
  query, key, value, decay, rate = (x[:, 0] for x in given)
  memory = memory * jnp.exp(decay)[..., None, None]
  known = jnp.einsum('bnkv,bnk->bnv', memory, key, precision='highest')
  memory = memory + key[..., None] * (rate[..., None] * (value - known))[..., None, :]
  return jnp.einsum('bnkv,bnk->bnv', memory, query, precision='highest')[:, None], memory


def in_chunks(
  given: Given, memory: Float[Array, 'B N K V'], *, chunk: int = CHUNK
) -> tuple[Float[Array, 'B T N V'], Float[Array, 'B N K V']]:
  """T tokens, `chunk` at a time, a power of two.

  What the tokens of a chunk write depends on what those before them wrote: (I + A) W = β (V - e^G K S), where A is
  below the diagonal β K Kᵀ with the decay between both tokens, G the decay since the chunk began, S the memory there.
  """
  length = given.query.shape[1]
  chunk = min(chunk, 1 << (length - 1).bit_length())
  # Tokens that fill up the last chunk have neither key nor decay: they leave no trace.
  pad = lambda x: jnp.pad(x, ((0, 0), (0, -length % chunk), *((0, 0),) * (x.ndim - 2)))
  cut = lambda x: jnp.moveaxis(x.reshape(x.shape[0], -1, chunk, *x.shape[2:]), (1, 3), (0, 2))
  query, key, value, decay, rate = (cut(pad(x)) for x in given)  # [chunks, B, N, chunk, …]
  dot = functools.partial(jnp.einsum, precision='highest')
  since = jnp.cumsum(decay, axis=-1)
  gap = since[..., :, None] - since[..., None, :]
  below = jnp.tril(jnp.ones((chunk, chunk), bool))
  faded = jnp.exp(jnp.where(below, gap, -jnp.inf))
  pairs = dot('...ik,...jk->...ij', key, key) * faded * rate[..., None]
  inverse = _inverse(jnp.tril(pairs, -1))
  fresh, known = (
    dot('...ij,...jk->...ik', inverse, x * rate[..., None])
    for x in (value, key * jnp.exp(since)[..., None])
  )
  attended = dot('...ik,...jk->...ij', query, key) * faded
  asked = query * jnp.exp(since)[..., None]
  last = since[..., -1:]
  kept = key * jnp.exp(last - since)[..., None]

  def advance(memory, inputs):
    fresh, known, attended, asked, kept, last = inputs
    written = fresh - dot('bnck,bnkv->bncv', known, memory)
    out = dot('bnck,bnkv->bncv', asked, memory) + dot('bnij,bnjv->bniv', attended, written)
    return memory * jnp.exp(last)[..., None] + dot('bnck,bncv->bnkv', kept, written), out

  memory, out = jax.lax.scan(advance, memory, (fresh, known, attended, asked, kept, last))
  out = jnp.moveaxis(out, (0, 2), (1, 3))  # [B, chunks, chunk, N, V]
  return out.reshape(out.shape[0], -1, *out.shape[3:])[:, :length], memory


def _inverse(below: Float[Array, '*N C C']) -> Float[Array, '*N C C']:
  """(I + A)⁻¹ of matrices A that are zero on and above the diagonal; C is a power of two.

  Blocks of twice the size, again and again: of [[P, 0], [M, Q]] it is [[P⁻¹, 0], [-Q⁻¹ M P⁻¹, Q⁻¹]]. Products only: a
  triangular solver is slow on accelerators, and on processors it waits for the threads of the other devices.
  """
  *lead, size, _ = below.shape
  blocks = jnp.ones((*lead, size, 1, 1), below.dtype)
  while (half := blocks.shape[-1]) < size:
    first, second = blocks[..., ::2, :, :], blocks[..., 1::2, :, :]
    pairs = below.reshape(*lead, size // (2 * half), 2 * half, size // (2 * half), 2 * half)
    along = jnp.moveaxis(jnp.diagonal(pairs, axis1=-4, axis2=-2), -1, -3)
    dot = functools.partial(jnp.matmul, precision='highest')
    corner = -dot(dot(second, along[..., half:, :half]), first)
    upper = jnp.concatenate([first, jnp.zeros_like(first)], axis=-1)
    blocks = jnp.concatenate([upper, jnp.concatenate([corner, second], axis=-1)], axis=-2)
  return blocks[..., 0, :, :]


class DeltaNet(nnx.Module):
  """Queries, keys and values through a short causal convolution, the recurrence, a norm, and a gate."""

  def __init__(self, config: ModelConfig, layout: Layout, *, rngs: nnx.Rngs):
    assert config.delta is not None
    if layout.size('length') > 1:
      raise ValueError(
        'Layout: columns of a row are cut (context), and layers that keep a state read them one after the other. Bind '
        'a layout without context for this model.'
      )
    self.layout, self.epsilon, self.shape = layout, config.norm_epsilon, config.delta
    dtype, width, heads = config.param_dtype, config.width, config.delta.value_heads
    mixed, size = config.delta.mixed, config.delta.value_dim
    by_head = ('heads', 'head_dim')
    self.qkv = weight(rngs, (width, mixed), ('embed', 'mlp'), inputs=1, dtype=dtype)
    self.z = weight(rngs, (width, heads, size), ('embed', *by_head), inputs=1, dtype=dtype)
    self.out = weight(rngs, (heads, size, width), (*by_head, 'embed'), inputs=2, dtype=dtype)
    self.rate = weight(rngs, (width, heads), ('embed', 'heads'), inputs=1, dtype=dtype)
    self.decay = weight(rngs, (width, heads), ('embed', 'heads'), inputs=1, dtype=dtype)
    taps = (mixed, 1, config.delta.kernel)
    self.kernel = weight(rngs, taps[::-1], (None, None, 'mlp'), inputs=1, dtype=dtype)
    self.kernel = nnx.Param(self.kernel[...].T, axes=('mlp', None, None))
    # Few numbers that every token multiplies with: float32, whatever the others are.
    speeds = jax.random.uniform(rngs.params(), (heads,), jnp.float32, minval=0.01, maxval=16.0)
    self.decay_log = nnx.Param(jnp.log(speeds), axes=('heads',))
    self.decay_bias = nnx.Param(jnp.ones((heads,), jnp.float32), axes=('heads',))
    self.norm = nnx.Param(jnp.ones((size,), jnp.float32), axes=('head_dim',))
    inputs = {'qkv': 1, 'z': 1, 'out': 2}
    lora.adapt(self, config.lora, inputs, rngs=rngs)
    if config.int8:
      int8.store(self, inputs)

  def __call__(
    self,
    x: Float[Array, 'B T D'],
    *,
    start: Int[Array, ' B'] | None,
    cache: caches.Cache | None,
    layer: int | None,
    count: Int[Array, ' B'] | None,
  ) -> tuple[Float[Array, 'B T D'], caches.Cache | None]:
    """Args are those of attention; `count` of the columns are the row's, the others leave no trace in its state."""
    real = self._real(x, start, cache, count)
    x = x if real is None else jnp.where(real[..., None], x, 0)
    state = None if cache is None or layer is None else cache.states[layer]
    mixed, recent = self._convolved(x, state, count)
    given = self._given(x, mixed, real)
    memory = self._empty(given) if state is None else state.memory
    if x.shape[1] == 1:
      out, memory = step(given, memory)
    else:
      out, memory = self._spread(given, memory)
    if cache is not None and layer is not None:
      cache = caches.remember(cache, layer, caches.State(recent, memory))
    return self._gated(x, out), cache

  def _real(self, x, start, cache, count) -> Bool[Array, 'B T'] | None:
    """Which columns are neither padding before a row nor behind its end; None where all are."""
    columns, real = jnp.arange(x.shape[1]), None
    if start is not None:
      begin = 0 if cache is None else cache.end[:, None]
      real = begin + columns >= start[:, None]
    if count is not None:
      within = columns < count[:, None]
      real = within if real is None else real & within
    return real

  def _convolved(self, x, state, count):
    """silu of the convolution of each channel with its last tokens; and those that the next call needs."""
    qkv = lora.adapted(self, 'qkv', x, x @ int8.matrix(self, 'qkv', x.dtype))
    qkv = self.layout.constrain(qkv, 'batch', 'length', 'mlp')
    kernel = self.kernel[...][:, 0].astype(x.dtype)  # as decoding stores it
    before, length = kernel.shape[1] - 1, x.shape[1]
    past = jnp.zeros_like(qkv[:, :1], shape=(qkv.shape[0], before, qkv.shape[2]))
    window = jnp.concatenate([past if state is None else state.recent, qkv], axis=1)
    wide = jnp.promote_types(jnp.float32, x.dtype)
    taps = [
      window[:, at : at + length].astype(wide) * kernel[:, at].astype(wide)
      for at in range(before + 1)
    ]
    end = jnp.full(x.shape[:1], length) if count is None else count
    last = end[:, None] + jnp.arange(before)
    recent = jnp.take_along_axis(window, last[..., None], axis=1)
    return jax.nn.silu(functools.reduce(jnp.add, taps).astype(x.dtype)), recent

  def _given(self, x, mixed, real) -> Given:
    shape, wide = self.shape, jnp.promote_types(jnp.float32, x.dtype)
    keys, heads = shape.key_heads * shape.key_dim, shape.value_heads
    query, key, value = jnp.split(mixed.astype(wide), [keys, 2 * keys], axis=-1)
    by_head = lambda y, count: y.reshape(*y.shape[:2], count, -1)
    query, key = (_unit(by_head(y, shape.key_heads)) for y in (query, key))
    query, key = (jnp.repeat(y, heads // shape.key_heads, axis=2) for y in (query, key))
    query = query * shape.key_dim**-0.5
    query, key, value = (
      self.layout.constrain(y, *HEADS) for y in (query, key, by_head(value, heads))
    )
    small = lambda name: (x @ getattr(self, name)[...].astype(x.dtype)).astype(wide)
    speed = jax.nn.softplus(small('decay') + self.decay_bias[...].astype(wide))
    decay = -jnp.exp(self.decay_log[...].astype(wide)) * speed
    # Published code rounds the rate to the type of the activations.
    rate = jax.nn.sigmoid(small('rate').astype(x.dtype)).astype(wide)
    if real is not None:  # behind its end a row still has channels: the convolution remembers
      decay, rate = (jnp.where(real[..., None], y, 0) for y in (decay, rate))
    return Given(query, key, value, decay, rate)

  def _empty(self, given: Given) -> Float[Array, 'B N K V']:
    rows, _, heads, size = given.key.shape
    memory = jnp.zeros((rows, heads, size, given.value.shape[-1]), given.key.dtype)
    return self.layout.constrain(memory, *caches.MEMORY)

  def _spread(self, given: Given, memory):
    """`in_chunks`, each device with its own rows and heads: nothing of it crosses either."""
    if self.layout.is_single:
      return in_chunks(given, memory)
    by_head, kept = self.layout.spec(*HEADS), self.layout.spec(*caches.MEMORY)
    specs = jax.tree.map(lambda x: self.layout.spec(*HEADS[: x.ndim]), given), kept
    return jax.shard_map(
      in_chunks,
      mesh=self.layout.mesh,
      in_specs=specs,
      out_specs=(by_head, kept),
      check_vma=False,
    )(given, memory)

  def _gated(self, x, out) -> Float[Array, 'B T D']:
    """The norm of each head, times silu of its gate, back to the width of the model."""
    z = jnp.einsum('btd,dnh->btnh', x, int8.matrix(self, 'z', x.dtype))
    z = lora.adapted(self, 'z', x, z)
    size = jnp.mean(jnp.square(out), axis=-1, keepdims=True)
    normed = (out * jax.lax.rsqrt(size + self.epsilon)).astype(x.dtype)
    normed = (normed * self.norm[...].astype(x.dtype)).astype(out.dtype)
    gated = (normed * jax.nn.silu(z.astype(out.dtype))).astype(x.dtype)
    back = int8.matrix(self, 'out', x.dtype).reshape(-1, x.shape[-1])
    gated = gated.reshape(*x.shape[:2], -1)
    return lora.adapted(self, 'out', gated, gated @ back)


def _unit(x: Float[Array, '*N K']) -> Float[Array, '*N K']:
  """Vectors of length one; zero stays zero."""
  return x * jax.lax.rsqrt(jnp.sum(jnp.square(x), axis=-1, keepdims=True) + 1e-6)
