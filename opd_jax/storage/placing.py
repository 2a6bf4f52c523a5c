"""Floor 2. From a tensor of a file to the devices where it will live, each with its own shard."""

import functools
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from opd_jax.models import int8
from opd_jax.storage.parameter_names import Piece
from opd_jax.storage.safetensors import DTYPES, Tensor


def parts_of(
  tensor: Tensor, piece: Piece, target: Mapping[str, jax.ShapeDtypeStruct]
) -> dict[str, jax.Array]:
  """One tensor as the slices that it fills: of a parameter, and where that is int8 also of its steps."""
  leaf, scale = target[piece.path], target.get(piece.path + int8.SCALE)
  if scale is None:
    return {piece.path: part_of(tensor, piece, leaf)}
  wide = jax.ShapeDtypeStruct(leaf.shape, DTYPES[tensor.dtype], sharding=leaf.sharding)
  store = int8.quantiser(*(slice_of(each, len(piece.at)) for each in (leaf, scale)))
  part, steps = store(part_of(tensor, piece, wide))
  return {piece.path: part, piece.path + int8.SCALE: steps}


def part_of(tensor: Tensor, piece: Piece, leaf: jax.ShapeDtypeStruct) -> jax.Array:
  """One tensor as the slice of the parameter `leaf` that it fills."""
  if jax.process_count() > 1:
    return _exchanged(tensor, piece, leaf)
  return _sharded(piece.ours(tensor.read()), leaf, depth=len(piece.at))


def slice_of(leaf: jax.ShapeDtypeStruct, depth: int) -> jax.ShapeDtypeStruct:
  """One entry of the first `depth` axes of a parameter: of one layer, or one expert of it."""
  assert isinstance(leaf.sharding, NamedSharding)
  sharding = NamedSharding(leaf.sharding.mesh, PartitionSpec(*leaf.sharding.spec[depth:]))
  return jax.ShapeDtypeStruct(leaf.shape[depth:], leaf.dtype, sharding=sharding)


@functools.partial(jax.jit, donate_argnums=0)
def into(stack, piece, at):
  """Writes one tensor into its slice of a stacked parameter, in place."""
  indices = (*at, *(jnp.zeros((), jnp.int32),) * (stack.ndim - len(at)))
  return jax.lax.dynamic_update_slice(stack, piece.reshape((1,) * len(at) + piece.shape), indices)


def _sharded(host: np.ndarray, leaf: jax.ShapeDtypeStruct, *, depth: int) -> jax.Array:
  """Puts one tensor on the devices that hold its slice of the parameter `leaf`, each with its own shard."""
  sharding = slice_of(leaf, depth).sharding

  def cut(where: Any) -> np.ndarray:
    return np.ascontiguousarray(host[where]).astype(leaf.dtype, copy=False)

  return jax.make_array_from_callback(host.shape, sharding, cut, dtype=leaf.dtype)


def _exchanged(tensor: Tensor, piece: Piece, leaf: jax.ShapeDtypeStruct) -> jax.Array:
  """The same where several processes load: each reads its share of the rows, and their devices exchange them.

  A slice by columns would be runs of bytes too short for any disk or bucket, and a copy on every host would be read by
  every host.
  """
  assert isinstance(leaf.sharding, NamedSharding)
  mesh, count = leaf.sharding.mesh, tensor.shape[0]
  padded = -(-count // mesh.size) * mesh.size

  def share(where: Any) -> np.ndarray:
    begin, end = (min(at, count) for at in where[0].indices(padded)[:2])
    read = tensor.rows(begin, end)
    missing = padded // mesh.size - len(read)
    return np.pad(read, ((0, missing), *((0, 0),) * (read.ndim - 1))) if missing else read

  by_row = NamedSharding(mesh, PartitionSpec(mesh.axis_names))
  rows = jax.make_array_from_callback(
    (padded, *tensor.shape[1:]), by_row, share, dtype=DTYPES[tensor.dtype]
  )  # a process without a device of the mesh reads nothing, and still has to name the type
  target = slice_of(leaf, len(piece.at)).sharding
  return _exchange(count, piece.inputs, piece.shape, leaf.dtype, target)(rows)


@functools.cache
def _exchange(count: int, inputs: int, shape: tuple[int, ...], dtype: Any, target: NamedSharding):
  """The program that sends rows of a published tensor to where they will live, one for each shape."""

  def program(rows):
    published = rows[:count]
    return (published.T if inputs else published).reshape(shape).astype(dtype)

  return jax.jit(program, out_shardings=target)
