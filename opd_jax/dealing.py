"""Floor 0. Rows of a batch, dealt to passes so that no row leaves its device.

A batch is cut over devices in blocks. A pass that takes the same share of every block, and a batch that is put together
from such passes, move nothing between devices; rows that lie anywhere are gathered from everywhere first.
"""

import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int

from opd_jax.sharding import Layout


def passes(rows: int, *, most: int, pieces: int) -> list[Int[np.ndarray, ' N']]:
  """The row numbers of every pass.

  Args:
    rows: of the batch; the devices divide them.
    most: rows of one pass; at least one a device is taken.
    pieces: devices that the rows are cut over.

  >>> [each.tolist() for each in passes(8, most=4, pieces=2)]
  [[0, 1, 4, 5], [2, 3, 6, 7]]
  """
  blocks = np.arange(rows).reshape(pieces, -1)
  share = max(most // pieces, 1)
  return [
    blocks[:, begin : begin + share].ravel() for begin in range(0, max(rows // pieces, 1), share)
  ]


def stay(members: Int[np.ndarray, ' N'], *, rows: int, pieces: int) -> bool:
  """Whether some rows of a batch, cut over the devices again, lie where they lay."""
  if rows % pieces or len(members) % pieces:
    return False
  here = np.asarray(members).reshape(pieces, -1) // (rows // pieces)
  return bool((here == np.arange(pieces)[:, None]).all())


@functools.partial(jax.jit, static_argnames=('width', 'layout', 'local'))
def taken(tree: Any, members: Int[Array, ' N'], *, width: int, layout: Layout, local: bool) -> Any:
  """Some rows of arrays [B, R, …], and their first columns.

  Args:
    tree: of arrays that have rows.
    members: the rows.
    width: columns that are kept.
    layout: that cuts rows.
    local: whether rows `stay`.
  """
  cut = lambda x: x[:, :width] if x.ndim >= 2 else x
  tree = jax.tree.map(jnp.asarray, tree)
  if layout.is_single:
    return jax.tree.map(lambda x: cut(x[members]), tree)
  if not local:
    pin = lambda x: layout.constrain(x, 'batch', *[None] * (x.ndim - 1))
    return jax.tree.map(lambda x: pin(cut(x[members])), tree)
  axes = layout.mesh_axes('batch')

  def here(members, tree):
    first = lambda x: jax.lax.axis_index(axes) * x.shape[0]
    return jax.tree.map(lambda x: cut(x[members - first(x)]), tree)

  return _by_row(here, layout)(members, tree)


@functools.partial(jax.jit, static_argnames=('layout',))
def joined(parts: Sequence[Any], *, layout: Layout) -> Any:
  """The batch that was dealt to `passes`."""
  whole = lambda *parts: jax.tree.map(lambda *pieces: jnp.concatenate(pieces), *parts)
  return whole(*parts) if layout.is_single else _by_row(whole, layout)(*parts)


def _by_row(function, layout: Layout):
  by_row = layout.spec('batch')
  return jax.shard_map(
    function, mesh=layout.mesh, in_specs=by_row, out_specs=by_row, check_vma=False
  )
