"""Floor 1. Experts that lie on several devices: each reads the tokens of all, and computes its own experts' part.

Sending every token to the k devices of its experts and back would send 2 k numbers a number. Of P devices that share
the experts each gathers the tokens of all, and every token's outputs are summed where it lies: 2 P numbers a number,
whatever the router chooses. So P ≤ 2 k devices should share; nothing is dropped, and no buffer has a capacity.

How many pairs of a token and an expert a device has is known only when they are routed, so it works through blocks of
them until none is left. Such a loop has no derivative of its own: the backward pass runs the blocks again.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

GATHERED_BYTES = 64 * 2**20  # of tokens that a device reads at once
BLOCKS = 4  # that a device has where every expert is chosen equally often
LANES = 128  # rows of a block are multiples of it


class Routed(NamedTuple):
  """Pairs of a token and one of this device's experts, sorted by expert; other pairs come last."""

  order: Int[Array, ' M']
  ends: Int[Array, ' E']  # of each expert's pairs


def shared(
  x: Float[Array, 'M D'],
  chosen: Int[Array, 'M C'],
  weights: Float[Array, 'M C'],
  matrices: Any,
  feed: Callable[..., Array],
  *,
  count: int,
  axes: tuple[str, ...],
) -> Float[Array, 'M D']:
  """Each token's weighted sum over its experts. Call it on one device of a mesh.

  Args:
    x, chosen, weights: of this device's tokens; each token's experts by number, and their weights.
    matrices: of this device's experts, a pytree.
    feed: (rows sorted by expert, rows of each expert, matrices) to their outputs.
    count: experts here.
    axes: mesh axes whose devices share the experts.
  """
  devices = jax.lax.axis_size(axes)
  most = max(GATHERED_BYTES // (devices * x.shape[1] * x.dtype.itemsize), 1)
  parts = -(-x.shape[0] // most)
  size = -(-x.shape[0] // parts)
  more = parts * size - x.shape[0]
  cut = lambda x, fill: jnp.pad(x, ((0, more), (0, 0)), constant_values=fill).reshape(
    parts, size, -1
  )
  pairs = size * chosen.shape[1]  # of a device, and so of every owner on average
  block = min(-(-pairs // (BLOCKS * LANES)) * LANES, devices * pairs)
  step = functools.partial(_block, feed=feed, block=block, per_token=chosen.shape[1])

  @functools.partial(jax.checkpoint, prevent_cse=parts == 1)
  def some(piece, matrices):
    gather = lambda x: jax.lax.all_gather(x, axes, axis=0, tiled=True)
    x, chosen, weights = map(gather, piece)
    routed = _routed(chosen - jax.lax.axis_index(axes) * count, count)
    over_blocks: Any = _over_blocks
    total = over_blocks(step, block, routed, (x, weights, matrices))
    return jax.lax.psum_scatter(total.astype(x.dtype), axes, scatter_dimension=0, tiled=True)

  pieces = cut(x, 0), cut(chosen, -devices * count), cut(weights, 0)
  if parts == 1:
    return some(tuple(x[0] for x in pieces), matrices)[: x.shape[0]]
  outputs = jax.lax.map(lambda piece: some(piece, matrices), pieces)
  return outputs.reshape(parts * size, -1)[: x.shape[0]]


def _routed(local: Int[Array, 'M C'], count: int) -> Routed:
  which = jnp.where((local >= 0) & (local < count), local, count).reshape(-1)
  return Routed(jnp.argsort(which), jnp.cumsum(jnp.bincount(which, length=count + 1)[:count]))


def _block(number, total, routed: Routed, x, weights, matrices, *, feed, block: int, per_token):
  """total [N, D] with one block of pairs added to their tokens' rows."""
  at = number * block + jnp.arange(block)
  pair = jnp.take(routed.order, at, mode='fill', fill_value=0)
  here = at < routed.ends[-1]
  token = jnp.where(here, pair // per_token, x.shape[0])  # outside: read as zero, written nowhere
  rows = x.at[token].get(mode='fill', fill_value=0)
  inside = jnp.clip(routed.ends, number * block, (number + 1) * block)
  sizes = jnp.diff(inside, prepend=number * block)
  sizes = sizes.at[-1].add(block - sizes.sum()).astype(jnp.int32)  # no row is left undefined
  outputs = feed(rows, sizes, matrices)
  weight = jnp.where(here, jnp.take(weights.reshape(-1), pair), 0.0)
  # One token's rows of a block are added in the order of its experts, but on a GPU in any order.
  return total.at[token].add(weight[:, None].astype(total.dtype) * outputs, mode='drop')


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _over_blocks(step, block: int, routed: Routed, arguments) -> Float[Array, 'N D']:
  """The sum of as many blocks as there are, in float32 at least."""
  x = arguments[0]
  zero = jnp.zeros(x.shape, jnp.promote_types(jnp.float32, x.dtype))
  add = lambda number, total: step(number, total, routed, *arguments)
  return jax.lax.fori_loop(0, _blocks(routed, block), add, zero)


def _blocks(routed: Routed, block: int) -> Int[Array, '']:
  return -(-routed.ends[-1] // block)


def _forward(step, block, routed, arguments):
  return _over_blocks(step, block, routed, arguments), (routed, arguments)


def _backward(step, block, kept, cotangent):
  routed, arguments = kept
  wide = lambda x: jnp.zeros(x.shape, jnp.promote_types(jnp.float32, x.dtype))

  def add(number, sums):
    alone = lambda arguments: step(number, jnp.zeros_like(cotangent), routed, *arguments)
    found = jax.vjp(alone, arguments)[1](cotangent)[0]
    return jax.tree.map(lambda old, new: old + new.astype(old.dtype), sums, found)

  sums = jax.lax.fori_loop(0, _blocks(routed, block), add, jax.tree.map(wide, arguments))
  return None, jax.tree.map(lambda x, like: x.astype(like.dtype), sums, arguments)


_over_blocks.defvjp(_forward, _backward)
