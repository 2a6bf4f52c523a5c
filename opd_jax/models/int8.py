"""Floor 1. Frozen matrices in a quarter of float32: whole numbers from -127 to 127, times a step for each output.

    W ≈ q · s,   s = max |W| / 127 over the inputs of an output

A weight `query` has a `query_scale` beside it in the tree of parameters. Norms, biases, routers, embeddings and heads
stay as they are. Computing takes each matrix back to the type of the activations, so only memory is saved.
"""

import functools
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int

SCALE = '_scale'  # what is appended to the name of a weight
LEVELS = 127  # on each side of zero


def quantised(
  w: Float[Array, '*shape'], over: tuple[int, ...]
) -> tuple[Int[Array, '*shape'], Float[Array, '*scale']]:
  """The nearest multiples of a step, 1/127 of the largest entry along the axes `over`: w ≈ q · scale."""
  wide = w.astype(jnp.float32)
  largest = jnp.max(jnp.abs(wide), axis=over, keepdims=True)
  scale = jnp.where(largest > 0, largest / LEVELS, 1.0)
  return jnp.clip(jnp.round(wide / scale), -LEVELS, LEVELS).astype(jnp.int8), scale


def store(module: Any, inputs: Mapping[str, int], *, leading: int = 0) -> None:
  """Gives the weights of a layer their stored form.

  Args:
    module: has the weights as attributes.
    inputs: how many axes of each weight, behind `leading` ones, are its inputs.
  """
  for name, count in inputs.items():
    weight, over = getattr(module, name), range(leading, leading + count)
    q, scale = quantised(weight[...], tuple(over))
    names = weight.get_metadata('axes')
    axes = tuple(None if i in over else axis for i, axis in enumerate(names))
    setattr(module, name, nnx.Param(q, axes=names))
    setattr(module, name + SCALE, nnx.Param(scale, axes=axes))


def matrix(module: Any, name: str, dtype: Any) -> Array:
  """The weight of a layer as activations of this type use it."""
  weight = getattr(module, name)[...]
  if hasattr(module, name + SCALE):
    return (weight.astype(jnp.float32) * getattr(module, name + SCALE)[...]).astype(dtype)
  return weight.astype(dtype)


def converted(params: dict[Any, Any], leaves: Mapping[Any, Any]) -> dict[Any, Any]:
  """The parameters of a model as another one stores them, of which some matrices are int8.

  Args:
    params: of the model without int8. Matrices are taken out one by one, so that both forms of all of them are never
      there at once.
    leaves: shapes and shardings of the result.
  """
  found = {}
  for key, leaf in leaves.items():
    if isinstance(leaf, Mapping):
      found[key] = converted(params[key], leaf)
    elif f'{key}{SCALE}' in leaves:
      pair = quantiser(leaf, leaves[f'{key}{SCALE}'])(params.pop(key))
      found[key], found[f'{key}{SCALE}'] = jax.block_until_ready(pair)
    elif not str(key).endswith(SCALE):
      found[key] = params[key]
  return found


def quantiser(leaf: Any, scale: Any) -> Any:
  """The program that stores a weight as two arrays of these shapes."""
  over = tuple(axis for axis, size in enumerate(scale.shape) if size == 1)
  return _quantiser(over, leaf.sharding, scale.sharding)


@functools.lru_cache(maxsize=64)
def _quantiser(over: tuple[int, ...], *shardings: Any) -> Any:
  return jax.jit(lambda w: quantised(w, over), out_shardings=shardings)
