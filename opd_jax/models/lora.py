"""Floor 1. Low-rank adapters: what a linear map computes with one.

    y = x W + (alpha / rank) (x A) B        A: [in, rank], random   B: [rank, out], zero at the beginning

A weight `query` has `query_lora/A` and `query_lora/B` beside it in the tree of parameters, in float32. Only adapters
are trained; `adapters.py` says which leaves those are, and `int8.py` how the frozen ones may lie in memory. qwix 0.1.8
offers the same by intercepting `dot_general` and `einsum` while a model is traced: it reaches no `ragged_dot`, so
experts would get no adapters. So the layers call `int8.matrix` and `adapted` themselves.
"""

import math
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from opd_jax.static import static

# The published name of each linear map, and ours.
TARGETS: Mapping[str, str] = {
  'q_proj': 'query',
  'k_proj': 'key',
  'v_proj': 'value',
  'o_proj': 'output',
  'in_proj_qkv': 'qkv',
  'in_proj_z': 'z',
  'out_proj': 'out',
  'gate_proj': 'gate',
  'up_proj': 'up',
  'down_proj': 'down',
}
USUAL = ('q_proj', 'k_proj', 'v_proj', 'o_proj', 'gate_proj', 'up_proj', 'down_proj')
ADAPTER = '_lora'  # what is appended to the name of a weight


@static
class Lora:
  """Low-rank adapters beside the linear maps of a model whose other weights are frozen.

  Args:
    rank: of every adapter; each expert has its own.
    alpha: an adapter's output is multiplied by alpha / rank.
    targets: which linear maps have one, by their published names; layers of Qwen3.5 that keep a state have in_proj_qkv,
      in_proj_z and out_proj.
    int8: stores the frozen matrices as int8 with one scale for each output channel: half the memory of bfloat16, each
      weight off by at most half a step. False stores them in the type that activations have, as they are used. With
      int8 bind the model's remat: without it the backward pass keeps the matrices as they were used.
  """

  rank: int = 64
  alpha: float | int = 128
  targets: Sequence[str] = USUAL
  int8: bool = False

  def __post_init__(self):
    object.__setattr__(self, 'targets', tuple(self.targets))
    if isinstance(self.rank, bool) or not isinstance(self.rank, int) or self.rank < 1:
      raise ValueError(f'Lora: rank must be a whole number above 0, got {self.rank!r}.')
    if not self.alpha > 0:
      raise ValueError(f'Lora: alpha must be above 0, got {self.alpha!r}.')
    if not self.targets or (unknown := [x for x in self.targets if x not in TARGETS]):
      what = f'unknown targets {unknown}' if self.targets else 'no targets'
      raise ValueError(f'Lora: {what}; choose among {", ".join(TARGETS)}.')

  @property
  def factor(self) -> float:
    return self.alpha / self.rank

  def adapts(self, name: str) -> bool:
    """Whether the linear map that we call so has an adapter."""
    return any(TARGETS[target] == name for target in self.targets)

  def check_there(self, names: Collection[str]) -> None:
    """Refuses a target that no layer of a model has."""
    if absent := [target for target in self.targets if TARGETS[target] not in names]:
      there = [target for target in TARGETS if TARGETS[target] in names]
      raise ValueError(
        f'Lora: this model has no {", ".join(absent)}; its linear maps are {", ".join(there)}.'
      )

  def check_sides(self, sides: Mapping[str, tuple[int, int]]) -> None:
    """Refuses a rank that some adapted map does not have: the adapter would be larger than the map."""
    for target in self.targets:
      if TARGETS[target] in sides and self.rank > min(sides[TARGETS[target]]):
        rows, columns = sides[TARGETS[target]]
        raise ValueError(
          f'Lora: rank {self.rank} is more than {target} of this model has: it is {rows} x {columns}. Take a rank of '
          f'at most {min(rows, columns)}, or leave {target} out of targets.'
        )


class Adapter(nnx.Module):
  """A and B of one weight; `leading` axes (of experts) have matrices of their own."""

  def __init__(self, weight: nnx.Param, lora: Lora, *, inputs: int, leading: int, rngs: nnx.Rngs):
    shape, axes = weight.shape, weight.get_metadata('axes')
    cut = leading + inputs
    # Drawn as PEFT draws it, so that learning rates of publications fit.
    bound = 1 / math.sqrt(math.prod(shape[leading:cut]))
    a = jax.random.uniform(
      rngs.params(), (*shape[:cut], lora.rank), jnp.float32, minval=-bound, maxval=bound
    )
    b = jnp.zeros((*shape[:leading], lora.rank, *shape[cut:]), jnp.float32)
    self.A = nnx.Param(a, axes=(*axes[:cut], None))
    self.B = nnx.Param(b, axes=(*axes[:leading], None, *axes[cut:]))
    self.factor, self.leading = lora.factor, leading

  def pair(self, dtype: Any) -> tuple[Array, Array]:
    """A and B as matrices of the type of activations; the factor is in B."""
    a, b, first = self.A[...], self.factor * self.B[...], self.A.shape[: self.leading]
    a, b = a.reshape(*first, -1, a.shape[-1]), b.reshape(*first, a.shape[-1], -1)
    return a.astype(dtype), b.astype(dtype)


def adapt(
  module: Any, lora: Lora | None, inputs: Mapping[str, int], *, leading: int = 0, rngs: nnx.Rngs
) -> None:
  """Gives a layer its adapters.

  Args:
    module: has the weights as attributes.
    lora: None leaves everything as it is.
    inputs: how many axes of each weight, behind `leading` ones, are its inputs.
  """
  if lora is None:
    return
  for name, count in inputs.items():
    weight = getattr(module, name)
    if lora.adapts(name):
      adapter = Adapter(weight, lora, inputs=count, leading=leading, rngs=rngs)
      setattr(module, name + ADAPTER, adapter)


def adapted(module: Any, name: str, x: Float[Array, 'B T I'], y: Array) -> Array:
  """y = x W with the output of the weight's adapter added, where it has one."""
  if not hasattr(module, name + ADAPTER):
    return y
  a, b = getattr(module, name + ADAPTER).pair(x.dtype)
  return y + ((x @ a) @ b).reshape(y.shape)
