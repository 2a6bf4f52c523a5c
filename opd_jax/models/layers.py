"""Floor 1. Parameters with named axes, and the layers that need no attention: norm, rotary, MLP."""

import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, Int

from opd_jax.models import int8, lora
from opd_jax.models.config import ModelConfig, RopeScaling
from opd_jax.sharding import Layout


def weight(
  rngs: nnx.Rngs, shape: Sequence[int], axes: Sequence[str | None], *, inputs: int, dtype: str
) -> nnx.Param:
  """Draws a normal weight of variance 1 / fan-in, the size of the first `inputs` axes after `experts`."""
  skip = 1 if axes[0] == 'experts' else 0
  deviation = 1.0 / math.sqrt(math.prod(shape[skip : skip + inputs]))
  value = deviation * jax.random.normal(rngs.params(), tuple(shape), jnp.float32)
  return nnx.Param(value.astype(dtype), axes=tuple(axes))


def bias(shape: Sequence[int], axes: Sequence[str], *, dtype: str) -> nnx.Param:
  return nnx.Param(jnp.zeros(tuple(shape), dtype), axes=tuple(axes))


class RMSNorm(nnx.Module):
  r"""x / sqrt(mean(x²) + ε) · scale; the norm is computed in float32.

  A centred norm stores scale - 1 and multiplies before it rounds, as Qwen3.5 does.
  """

  def __init__(self, size: int, axis: str, *, config: ModelConfig):
    self.epsilon, self.centred = config.norm_epsilon, config.centred_norm
    begin = jnp.zeros if self.centred else jnp.ones
    self.scale = nnx.Param(begin((size,), config.param_dtype), axes=(axis,))

  def __call__(self, x: Float[Array, '*N D']) -> Float[Array, '*N D']:
    wide = x.astype(jnp.float32)
    normed = wide * jax.lax.rsqrt(jnp.mean(jnp.square(wide), axis=-1, keepdims=True) + self.epsilon)
    if self.centred:
      scale = self.scale[...].astype(x.dtype)  # as decoding stores it
      return (normed * (1 + scale.astype(normed.dtype))).astype(x.dtype)
    # Rounded before the scale, as the published implementations do: bf16 logits depend on the order.
    # Rounded explicitly: since jax 0.12 XLA:CPU drops a cast down and up again at some lengths.
    kind = jnp.finfo(x.dtype)
    normed = jax.lax.reduce_precision(normed, exponent_bits=kind.nexp, mantissa_bits=kind.nmant)
    return normed.astype(x.dtype) * self.scale[...].astype(x.dtype)


def rotary_frequencies(config: ModelConfig) -> np.ndarray:
  """Angle per position of each pair of head entries, with Llama 3's stretching where configured.

  A float32 constant with the roundings of the published code: a power rounded once, then one division. Computed
  inside a program it differs in the last bit, and positions multiply that: 6e-5 of the largest logit at 8,192.
  """
  size = config.rotary_dim
  exponents = np.arange(0, size, 2, dtype=np.float32) / np.float32(size)
  powers = (np.float64(config.rope_theta) ** exponents.astype(np.float64)).astype(np.float32)
  frequencies = np.float32(1.0) / powers
  return (
    frequencies if config.rope_scaling is None else _stretched(frequencies, config.rope_scaling)
  )


def _stretched(frequencies: np.ndarray, scaling: RopeScaling) -> np.ndarray:
  """Divides slow frequencies by `factor`, leaves fast ones, and blends linearly in between.

  In float32 and in the order of operations of the published code: at 4,096 positions one bit more or less in a
  blended frequency is 3e-5 of a logit.
  """
  single = np.float32
  old, factor = single(scaling.original_max_positions), single(scaling.factor)
  low, high = single(scaling.low_frequency_factor), single(scaling.high_frequency_factor)
  wavelength = single(2 * math.pi) / frequencies
  keep = (old / wavelength - low) / (high - low)
  blended = (1 - keep) * frequencies / factor + keep * frequencies
  slow, fast = wavelength > old / low, wavelength < old / high
  return np.where(slow, frequencies / factor, np.where(fast, frequencies, blended))


def rotary_table(
  positions: Int[Array, 'B T'], config: ModelConfig
) -> tuple[Float[Array, 'B T 1 half'], Float[Array, 'B T 1 half']]:
  """Cosine and sine at absolute positions, float32; one axis is left open for the heads."""
  angles = positions[..., None, None].astype(jnp.float32) * rotary_frequencies(config)
  return jnp.cos(angles), jnp.sin(angles)


def rotate(
  x: Float[Array, 'B T N H'], table: tuple[Float[Array, 'B T 1 half'], Float[Array, 'B T 1 half']]
) -> Float[Array, 'B T N H']:
  """Rotates the pair of entries i and i + half by the angle of its position; entries beyond 2 · half stay."""
  cosine, sine = table
  if (size := 2 * cosine.shape[-1]) < x.shape[-1]:
    return jnp.concatenate([rotate(x[..., :size], table), x[..., size:]], axis=-1)
  first, second = jnp.split(x.astype(jnp.float32), 2, axis=-1)
  rotated = jnp.concatenate(
    [first * cosine - second * sine, second * cosine + first * sine], axis=-1
  )
  return rotated.astype(x.dtype)


class GatedMLP(nnx.Module):
  """down( silu(gate x) · up x )."""

  def __init__(self, config: ModelConfig, layout: Layout, *, rngs: nnx.Rngs):
    self.layout = layout
    wide, narrow = (config.width, config.mlp_width), (config.mlp_width, config.width)
    self.gate = weight(rngs, wide, ('embed', 'mlp'), inputs=1, dtype=config.param_dtype)
    self.up = weight(rngs, wide, ('embed', 'mlp'), inputs=1, dtype=config.param_dtype)
    self.down = weight(rngs, narrow, ('mlp', 'embed'), inputs=1, dtype=config.param_dtype)
    inputs = {'gate': 1, 'up': 1, 'down': 1}
    lora.adapt(self, config.lora, inputs, rngs=rngs)
    if config.int8:
      int8.store(self, inputs)

  def __call__(self, x: Float[Array, 'B T D']) -> Float[Array, 'B T D']:
    gate, up, down = (int8.matrix(self, name, x.dtype) for name in ('gate', 'up', 'down'))
    gated = jax.nn.silu(lora.adapted(self, 'gate', x, x @ gate))
    hidden = gated * lora.adapted(self, 'up', x, x @ up)
    hidden = self.layout.constrain(hidden, 'batch', 'length', 'mlp')
    return lora.adapted(self, 'down', hidden, hidden @ down)
