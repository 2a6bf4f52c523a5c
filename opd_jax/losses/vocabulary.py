r"""Floor 1. The one pass over the vocabulary: Σ coefficient · term and its gradient, tile by tile, in one sweep.

Every coefficient is known before the gradient, so a tile of tokens can form its logits, its values *and* its
d logits at once, turn these into d hidden and d head, and forget them: four matrix products (student, teacher, two
for gradients), nothing computed twice, nothing of size tokens × V. The backward pass only scales what is there.

With the head cut along the vocabulary (`tensor`), each device holds its columns of a tile: normalisers and sums are
a `psum` of one number per token, a top k is a local top k and a merge. No array of size V is ever gathered.
"""

import functools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec
from jaxtyping import Array, Bool, Float, Int

from opd_jax.losses import tile as tiles
from opd_jax.losses.terms import DivergenceTerm, Term, WeightedTerm
from opd_jax.losses.tile import Reading
from opd_jax.losses.vocab_shard import Target, VocabShard, without_heads
from opd_jax.sharding import Layout
from opd_jax.types import AnyArray

TILE_BYTES = (
  40 * 2**20
)  # of float32 logits in a tile where the heads are narrow; a few such buffers live at once
HEAD_FRACTION = 0.25  # a tile of a wide head takes this fraction of the head's own bytes


def tile_of(width: int, vocabulary: int) -> int:
  """Tokens of a tile, from shapes alone: narrow heads want logits that stay small, wide ones pay to revisit d head.

  It never depends on the number of tokens, so memory does not either.
  """
  narrow = TILE_BYTES // (4 * vocabulary)
  wide = int(HEAD_FRACTION * width)
  return max(16, 1 << (max(narrow, wide, 1).bit_length() - 1))


def _added(
  d_head: Float[Array, 'D V'], states: Float[Array, 'N D'], d_logits: Float[Array, 'N V']
) -> Float[Array, 'D V']:
  """d_head + statesᵀ d_logits. In row blocks except on a GPU: XLA would otherwise materialise a second [D, V].

  A GPU's matrix product adds to d_head in place; row blocks cost 10 % there.
  """
  width, block = d_head.shape[0], states.shape[0]

  def whole(d_head, states, d_logits):
    return d_head + jnp.matmul(states.T, d_logits, preferred_element_type=d_head.dtype)

  def by_block(d_head, states, d_logits):
    def add(number, d_head):
      begin = number * block
      part = jax.lax.dynamic_slice_in_dim(states, begin, block, axis=1)
      old = jax.lax.dynamic_slice_in_dim(d_head, begin, block, axis=0)
      new = old + jnp.matmul(part.T, d_logits, preferred_element_type=d_head.dtype)
      return jax.lax.dynamic_update_slice_in_dim(d_head, new, begin, axis=0)

    return jax.lax.fori_loop(0, width // block, add, d_head)

  if width <= block or width % block:
    return whole(d_head, states, d_logits)
  return jax.lax.platform_dependent(d_head, states, d_logits, cuda=whole, default=by_block)


class _Pass(NamedTuple):
  """What the pass reads besides the student's states and head."""

  response: Int[AnyArray, 'B R']
  targets: Mapping[str, Target]
  terms: Sequence[WeightedTerm]
  counts: Bool[AnyArray, 'B R']


def _tiled(x: Array, *, count: int, tile: int) -> Array:
  """[B, R, …] as `count` tiles of tokens, the last one padded."""
  flat = x.reshape(-1, *x.shape[2:])
  flat = jnp.pad(flat, ((0, count * tile - len(flat)), *((0, 0),) * (flat.ndim - 1)))
  return flat.reshape(count, tile, *flat.shape[1:])


def _sweep(
  hidden, head, reads: _Pass, *, columns: VocabShard, tile: int, gradients: bool, diagnose
):
  """The pass over the tokens of one device. Returns the loss, the reading, and gradients (or None)."""
  rows = reads.response.shape
  size = rows[0] * rows[1]
  count = -(-size // tile)

  narrow = head.astype(hidden.dtype)  # cast once, not in every tile
  heads = {
    name: target.head.astype(target.hidden.dtype)
    for name, target in reads.targets.items()
    if target.hidden is not None and target.head is not None
  }
  targets = without_heads(reads.targets)
  cut = functools.partial(_tiled, count=count, tile=tile)
  pieces = jax.tree.map(cut, (hidden, reads.response, targets, reads.terms, reads.counts))
  wide = jnp.promote_types(jnp.float32, hidden.dtype)
  terms = tuple(weighted.term for weighted in reads.terms)
  body = functools.partial(tiles.read, terms=terms, columns=columns, diagnose=diagnose)

  def step(d_head, piece):
    reading, states, d_hidden, d_logits = body(piece, narrow, heads)
    if not gradients:
      return d_head, (reading, None)
    with jax.named_scope('d_hidden'):
      product = jnp.matmul(d_logits, narrow.T, preferred_element_type=wide)
      d_hidden = d_hidden + columns.everywhere(product)
    with jax.named_scope('d_head'):
      d_head = _added(d_head, states, d_logits)
    return d_head, (reading, d_hidden)

  zero = jnp.zeros(head.shape if gradients else (), wide)
  d_head, (reading, d_hidden) = jax.lax.scan(step, zero, pieces)
  whole = lambda x: x.reshape(count * tile, *x.shape[2:])[:size].reshape(*rows, *x.shape[2:])
  reading, d_hidden = jax.tree.map(whole, (reading, d_hidden))
  parts = [
    jnp.where(weighted.coefficient != 0, weighted.coefficient * value, 0.0).sum()
    for weighted, value in zip(reads.terms, reading.values, strict=True)
  ]
  return functools.reduce(jnp.add, parts), reading, d_hidden, d_head


def _distributed(hidden, head, reads: _Pass, *, layout: Layout, tile, gradients, diagnose):
  """The same over a mesh: tokens by batch, the heads by vocabulary."""
  columns = VocabShard.of(layout, head.shape[1])
  sweep = functools.partial(
    _sweep, columns=columns, tile=tile, gradients=gradients, diagnose=diagnose
  )
  if layout.is_single:
    return sweep(hidden, head, reads)
  batch, by_row = layout.mesh_axes('batch'), layout.spec('batch')
  by_column = layout.spec(None, 'vocab')

  def body(*arguments):
    loss, reading, d_hidden, d_head = sweep(*arguments)
    loss = jax.lax.psum(loss, batch)
    return loss, reading, d_hidden, jax.lax.psum(d_head, batch) if gradients else d_head

  specs = jax.tree.map(lambda _: by_row, reads._replace(targets=without_heads(reads.targets)))
  targets = {
    name: spec._replace(head=None if reads.targets[name].head is None else by_column)
    for name, spec in specs.targets.items()
  }
  out = by_row if gradients else None, by_column if gradients else PartitionSpec()
  return jax.shard_map(
    body,
    mesh=layout.mesh,
    in_specs=(by_row, by_column, specs._replace(targets=targets)),
    out_specs=(PartitionSpec(), by_row, *out),
    check_vma=False,
  )(hidden, head, reads)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _summed(static, hidden, head, reads):
  loss, reading, *_ = _distributed(hidden, head, reads, **dict(static), gradients=False)
  return loss, reading


def _summed_forward(static, hidden, head, reads):
  loss, reading, d_hidden, d_head = _distributed(
    hidden, head, reads, **dict(static), gradients=True
  )
  return (loss, reading), (d_hidden.astype(hidden.dtype), d_head.astype(head.dtype))


def _summed_backward(static, gradients, cotangents):
  d_hidden, d_head = gradients
  scale = cotangents[0]
  return (scale * d_hidden).astype(d_hidden.dtype), (scale * d_head).astype(d_head.dtype), None


_summed.defvjp(_summed_forward, _summed_backward)


def weighted_sum(
  hidden: Float[AnyArray, 'B R D'],
  head: Float[AnyArray, 'D V'],
  response: Int[AnyArray, 'B R'],
  targets: Mapping[str, Target],
  terms: Sequence[WeightedTerm],
  *,
  layout: Layout,
  mask: Bool[AnyArray, 'B R'] | None = None,
  tile: int | None = None,
  diagnose: str | None = None,
) -> tuple[Float[Array, ''], Reading]:
  """Σ over terms, rows and positions of coefficient · term, differentiable in `hidden` and `head`.

  Args:
    hidden: the student's states; those at [:, r] predict response[:, r].
    head: in the type it is stored in; the products are made in the type of `hidden`, d head comes back in its own.
    response: the written tokens.
    targets: what is known of each judge.
    terms: with their coefficients; a position without any coefficient adds nothing, whatever it holds.
    layout: whose mesh cuts rows (`batch`) and the vocabulary (`vocab`).
    mask: positions whose reading is wanted; None takes those with a coefficient.
    tile: tokens per tile; None chooses from shapes.
    diagnose: the judge that the reading compares the student with beyond what the terms need.
  """
  if not terms:
    raise ValueError(
      'vocabulary: no terms, so there is nothing to learn. A method returns at least one.'
    )
  reads = _Pass(
    response, dict(targets), tuple(terms), jnp.zeros(response.shape, bool) if mask is None else mask
  )
  check(hidden, head, reads, layout)
  static = _static(hidden, head, response, layout, tile, diagnose)
  summed: Any = _summed  # what is not hidden or head has no gradient: its backward pass says so
  return summed(static, hidden, head, reads)


def measured(
  hidden: Float[AnyArray, 'B R D'],
  head: Float[AnyArray, 'D V'],
  response: Int[AnyArray, 'B R'],
  targets: Mapping[str, Target],
  terms: Mapping[str, Term],
  *,
  layout: Layout,
  mask: Bool[AnyArray, 'B R'],
  tile: int | None = None,
) -> dict[str, Float[Array, 'B R']]:
  """Values of terms at every position that counts, without a gradient; the arguments are those of `weighted_sum`."""
  zero = jnp.zeros(response.shape, jnp.promote_types(jnp.float32, hidden.dtype))
  reads = _Pass(response, dict(targets), tuple(term(zero) for term in terms.values()), mask)
  check(hidden, head, reads, layout)
  static: dict[str, Any] = dict(_static(hidden, head, response, layout, tile, None))
  reading = _distributed(hidden, head, reads, **static, gradients=False)[1]
  return {
    name: jnp.where(mask, value, 0.0) for name, value in zip(terms, reading.values, strict=True)
  }


def _static(hidden, head, response, layout: Layout, tile: int | None, diagnose: str | None):
  """What is part of the program."""
  tile = tile or tile_of(hidden.shape[-1], head.shape[-1] // layout.size('vocab'))
  local = -(-response.size // layout.size('batch'))
  return (('layout', layout), ('tile', min(tile, max(local, 1))), ('diagnose', diagnose))


def check(hidden, head, reads: _Pass, layout: Layout) -> None:
  """Refuses what does not fit together, by name."""
  for name, target in reads.targets.items():
    if (target.hidden is None) != (target.head is None):
      raise ValueError(
        f'vocabulary: the hidden states of the {name} and its head belong together; one of them is missing.'
      )
    if target.head is not None and target.head.shape[1] != head.shape[1]:
      raise ValueError(
        f'vocabulary: the student has {head.shape[1]} entries, the {name} {target.head.shape[1]}. Position by position '
        'they can only be compared over one vocabulary.'
      )
  for what, size, axis in (
    ('rows', hidden.shape[0], 'batch'),
    ('entries of the vocabulary', head.shape[1], 'vocab'),
  ):
    if size % layout.size(axis):
      raise ValueError(
        f'vocabulary: {size} {what} cannot be shared evenly by {layout.size(axis)} devices ({axis!r}).'
      )
  for term, _, _ in reads.terms:
    if isinstance(term, DivergenceTerm) and term.of not in reads.targets:
      raise ValueError(
        f'vocabulary: {term.name} compares with the {term.of}, and only {sorted(reads.targets)} are given.'
      )
  for what, array in _arrays(hidden, reads):
    if array.shape[:2] != reads.response.shape:
      raise ValueError(
        f'vocabulary: {what} are of shape {array.shape}, the response is of shape {reads.response.shape}.'
      )


def _arrays(hidden, reads: _Pass) -> Iterator[tuple[str, Any]]:
  """Every array that belongs to a position, with its name."""
  yield 'the hidden states', hidden
  for name, target in reads.targets.items():
    if target.hidden is not None:
      yield f'the hidden states of the {name}', target.hidden
    for what, top in (('top k', target.top_k), ('log-probabilities at ids', target.at_ids)):
      if top is not None:
        yield f'the ids of the {what} of the {name}', top.ids
        yield f'the {what} of the {name}', top.logp
  for term, coefficient, inputs in reads.terms:
    yield f'the coefficient of {term.name}', coefficient
    for key, value in inputs.items():
      yield f'the input {key!r} of {term.name}', value
