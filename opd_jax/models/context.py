"""Floor 1. Attention of rows whose columns lie on several devices: keys and values are gathered, queries are not.

The last columns of a row have far more to attend to than the first. So queries are exchanged before and after: of 2 c
equal pieces of a row, device i of c attends with piece i and piece 2 c - 1 - i, and all have the same work. Everything
else of a layer looks at one column at a time and stays where the column lies.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from opd_jax.sharding import Layout

LANES = 128  # a TPU's kernel takes multiples of it
LONG = 4096  # columns of a row from which on larger blocks are worth their padding


def multiple(layout: Layout, length: int) -> int:
  """Columns of a row are padded to a multiple of this, at their end."""
  pieces = layout.size('length')
  if pieces == 1:
    return 1
  if layout.mesh.devices.flat[0].platform == 'tpu':
    return pieces * LANES * (1 if length <= LONG else 2)
  return 2 * pieces


def check(layout: Layout, length: int) -> None:
  """Refuses rows whose columns devices cannot share."""
  pieces = layout.size('length')
  if pieces > 1 and length % (2 * pieces):
    raise ValueError(
      f'transformer: a row of {length} columns cannot be shared evenly by {pieces} devices (mesh axes '
      f'{layout.mesh_axes("length")}). Pad rows to a multiple of {2 * pieces} columns.'
    )


def order(pieces: int, length: int) -> Int[np.ndarray, 'c columns']:
  """The columns whose queries each device has after the exchange: of its even piece, then of its odd one.

  >>> order(2, 8).tolist()
  [[0, 1, 6, 7], [4, 5, 2, 3]]
  """
  parts = np.arange(length).reshape(2 * pieces, -1)
  even = [_even(device, pieces) for device in range(pieces)]
  return np.stack([np.concatenate([parts[one], parts[2 * pieces - 1 - one]]) for one in even])


def _even(device: int, pieces: int) -> int:
  return device if device % 2 == 0 else 2 * pieces - 1 - device


def _exchanged(x: Array, axes: tuple[str, ...], *, back: bool = False) -> Array:
  """Neighbouring pieces of a row for an early and a late one, or the other way round."""
  pieces = jax.lax.axis_size(axes)
  holder = {_even(device, pieces): device for device in range(pieces)}
  moves = [(device, holder[2 * device]) for device in range(pieces)]
  odd = [(device, holder[2 * pieces - 2 - 2 * device]) for device in range(pieces)]
  parts = jnp.split(x, 2, axis=1)
  turned = lambda pairs: [(to, come) for come, to in pairs] if back else pairs
  parts = [
    jax.lax.ppermute(part, axes, turned(pairs))
    for part, pairs in zip(parts, (moves, odd), strict=True)
  ]
  return jnp.concatenate(parts, axis=1)


def spread(
  local: Callable[..., Array],
  query: Float[Array, 'B T N H'],
  key: Float[Array, 'B T K H'],
  value: Float[Array, 'B T K H'],
  start: Int[Array, ' B'] | None,
  *,
  layout: Layout,
  kernel: tuple[Any, Any] = (None, None),
) -> Float[Array, 'B T N H']:
  """Attention of rows whose columns the layout cuts.

  Args:
    local: (some queries, all keys, all values, start, columns of the queries [T], kernel) on one device.
    start: columns of left padding; None when there are none.
    kernel: arrays of a kernel that devices share, and how they are cut.
  """
  axes, pieces, length = layout.mesh_axes('length'), layout.size('length'), query.shape[1]
  columns = order(pieces, length)

  def body(query, key, value, start, kernel):
    key, value = (jax.lax.all_gather(x, axes, axis=1, tiled=True) for x in (key, value))
    here = jnp.asarray(columns)[jax.lax.axis_index(axes)]
    mixed = local(_exchanged(query, axes), key, value, start, here, kernel)
    return _exchanged(mixed, axes, back=True)

  by_query = layout.spec('batch', 'length', 'heads', 'head_dim')
  by_key = layout.spec('batch', 'length', 'kv_heads', 'head_dim')
  specs = (by_query, by_key, by_key, layout.spec('batch'), kernel[1])
  start = jnp.zeros(query.shape[:1], jnp.int32) if start is None else start
  return jax.shard_map(body, mesh=layout.mesh, in_specs=specs, out_specs=by_query, check_vma=False)(
    query, key, value, start, kernel[0]
  )


def response_states(
  states: Float[Array, 'B T D'], before: Int[Array, 'B R'], layout: Layout
) -> Float[Array, 'B R D']:
  """The states of the columns `before`: of every device's own part of the response, from all columns of its rows."""
  pieces, size = layout.size('length'), before.shape[1]
  if pieces == 1:
    return jnp.take_along_axis(states, before[..., None], axis=1)
  axes, tokens = layout.mesh_axes('length'), layout.spec('batch', 'length')

  def body(states, before):
    whole = jax.lax.all_gather(states, axes, axis=1, tiled=True)
    return jnp.take_along_axis(whole, before[..., None], axis=1)

  before = jnp.pad(before, ((0, 0), (0, -size % pieces)))
  found = jax.shard_map(
    body, mesh=layout.mesh, in_specs=(tokens, tokens), out_specs=tokens, check_vma=False
  )(states, before)
  return found[:, :size]
