"""Floor 1. Devices that share a vocabulary: each holds some columns of every head, and they read each other's tokens.

Parameters that are cut by width would have to be gathered whole for logits, and so would their gradient. Instead the
devices of a group exchange a head once, cut by width for cut by columns, and then their tokens, tile by tile. A group
of g devices holds V / g columns each and hands round g times its own tokens, so wide heads want large groups and many
tokens want small ones.
"""

import math
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, Mesh, PartitionSpec
from jaxtyping import Array, Float

from opd_jax.losses.vocab_shard import VocabShard
from opd_jax.sharding import Layout
from opd_jax.types import AnyArray

COLUMN_BYTES = 512 * 2**20  # of a head's float32 columns on one device


class VocabGroup(NamedTuple):
  """How the tokens and heads of a vocabulary pass lie on a mesh.

  Of the mesh axes that cut both tokens and the width of a head, the last ones are `inner`: their devices share the
  columns. The first ones are `outer`. One axis may be split into both, so this mesh is a view of the layout's.
  """

  mesh: Mesh
  tokens: PartitionSpec  # of an array [B, R, …]
  stored: PartitionSpec  # of a head [D, V] as its layout keeps it
  columns: VocabShard
  outer: tuple[str, ...]
  inner: tuple[str, ...]
  copies: tuple[str, ...]  # axes that cut tokens and not heads
  everywhere: tuple[str, ...]  # all axes that cut tokens
  width_pieces: int
  length_pieces: int

  @classmethod
  def of(
    cls, layout: Layout, *, width: int, vocabulary: int, tokens: int, share: int | None = None
  ) -> 'VocabGroup':
    """The group of a layout.

    Args:
      layout: whose rows, columns of tokens, vocabulary and width of parameters are cut.
      width, vocabulary: D and V of the student's head.
      tokens: on one device.
      share: devices that share a column's tokens; None chooses from shapes.
    """
    sizes = dict(layout.mesh.shape)
    cut = lambda name: tuple(axis for axis in layout.mesh_axes(name) if sizes[axis] > 1)
    batch, length, vocab = map(cut, ('batch', 'length', 'vocab'))
    stored = tuple(axis for axis in cut('embed') if axis in batch + length)
    columns = vocabulary // layout.size('vocab')
    choices = [
      choice
      for choice in _choices([sizes[axis] for axis in stored])
      if columns % math.prod(choice) == 0 and share in (None, math.prod(choice))
    ]
    if not choices:
      raise ValueError(
        f'vocabulary: {columns} columns cannot be shared by {share} of the devices of {stored or "one"}.'
      )
    cost = lambda choice: _cost(math.prod(choice), width=width, columns=columns, tokens=tokens)
    inner = dict(zip(stored, min(choices, key=cost), strict=True))
    named = {axis: _names(axis, sizes[axis], inner.get(axis, 1)) for axis in sizes}
    spread = lambda axes: tuple(name for axis in axes for name, _, _ in named[axis])
    side = lambda which: tuple(
      name for axis in stored for name, _, has in named[axis] if has is which
    )
    parts = [part for axis in sizes for part in named[axis]]
    mesh = Mesh(
      layout.mesh.devices.reshape([size for _, size, _ in parts]),
      [name for name, _, _ in parts],
      axis_types=(AxisType.Auto,) * len(parts),
    )
    shared = side(True)
    return cls(
      mesh=mesh,
      tokens=PartitionSpec(spread(batch), spread(length)),
      stored=PartitionSpec(spread(stored), vocab),
      columns=VocabShard(vocab + shared, columns // math.prod(inner.values())),
      outer=side(False),
      inner=shared,
      copies=tuple(axis for axis in batch + length if axis not in stored),
      everywhere=spread(batch + length),
      width_pieces=math.prod(sizes[axis] for axis in stored),
      length_pieces=layout.size('length'),
    )

  @property
  def share(self) -> int:
    """Devices of a group."""
    return math.prod(self.mesh.shape[axis] for axis in self.inner)

  # --- before and after the pass: arrays whose axes must divide evenly ---

  def long(self, tree: Any) -> Any:
    """Arrays [B, R, …] with columns up to a number that devices share; what is added counts nothing."""
    pad = lambda x: jnp.pad(
      x, ((0, 0), (0, -x.shape[1] % self.length_pieces), *((0, 0),) * (x.ndim - 2))
    )
    return tree if self.length_pieces == 1 else jax.tree.map(pad, tree)

  def wide(self, head: Float[AnyArray, 'D V']) -> Float[Array, 'E V']:
    """A head with rows up to a number that devices share."""
    more = -head.shape[0] % self.width_pieces
    return jnp.pad(head, ((0, more), (0, 0))) if more else jnp.asarray(head)

  # --- inside the pass, on one device ---

  def head(self, stored: Float[AnyArray, 'D V'], width: int, dtype: Any) -> Float[Array, 'E W']:
    """All rows of this device's columns, in the type of the products: so they are also sent."""
    here = jnp.asarray(stored).astype(dtype)
    if self.inner:
      here = jax.lax.all_to_all(here, self.inner, split_axis=1, concat_axis=0, tiled=True)
    if self.outer:
      here = jax.lax.all_gather(here, self.outer, axis=0, tiled=True)
    return here[:width]

  def d_head(self, partial: Float[Array, 'D V']) -> Float[Array, 'E W']:
    """Sums of all devices' gradients of these columns, as the head is stored."""
    total = self.wide(partial)
    if self.outer:
      total = jax.lax.psum_scatter(total, self.outer, scatter_dimension=0, tiled=True)
    if self.inner:
      total = jax.lax.all_to_all(total, self.inner, split_axis=0, concat_axis=1, tiled=True)
    return jax.lax.psum(total, self.copies) if self.copies else total

  def together(self, tree: Any) -> Any:
    """Arrays [N, …] of the tokens of every device of the group."""
    gather = lambda x: jax.lax.all_gather(x, self.inner, axis=0, tiled=True)
    return jax.tree.map(gather, tree) if self.inner else tree

  def own(self, tree: Any) -> Any:
    """This device's part of what `together` made."""
    if not self.inner:
      return tree
    number, share = jax.lax.axis_index(self.inner), self.share
    size = lambda x: x.shape[0] // share
    part = lambda x: jax.lax.dynamic_slice_in_dim(x, number * size(x), size(x))
    return jax.tree.map(part, tree)

  def summed(self, partial: Float[Array, 'N D']) -> Float[Array, 'M D']:
    """The sum over all columns, of this device's own tokens."""
    vocab = tuple(axis for axis in self.columns.axes if axis not in self.inner)
    total = jax.lax.psum(partial, vocab) if vocab else partial
    if self.inner:
      total = jax.lax.psum_scatter(total, self.inner, scatter_dimension=0, tiled=True)
    return total

  def everyone(self, x: Array) -> Array:
    """The sum over all tokens."""
    return jax.lax.psum(x, self.everywhere) if self.everywhere else x


def _names(axis: str, size: int, inner: int) -> list[tuple[str, int, bool]]:
  """What an axis becomes: name, size, and whether its devices share columns."""
  if 1 < inner < size:
    return [(axis, size // inner, False), (f'{axis}_shared', inner, True)]
  return [(axis, size, inner > 1)]


def _choices(sizes: Sequence[int]) -> Iterator[tuple[int, ...]]:
  """How many devices of each axis may share, the last axes first.

  >>> list(_choices([2, 4]))
  [(1, 1), (1, 2), (1, 4), (2, 4)]
  """
  yield (1,) * len(sizes)
  for number in reversed(range(len(sizes))):
    for share in range(2, sizes[number] + 1):
      if sizes[number] % share == 0:
        yield (*(1,) * number, share, *sizes[number + 1 :])


def _cost(share: int, *, width: int, columns: int, tokens: int) -> tuple[int, float]:
  """What is too large first, then what is sent: tokens g times, columns 1 / g."""
  held = np.dtype('float32').itemsize * width * columns // share
  return max(held - COLUMN_BYTES, 0), share * tokens + columns / share
