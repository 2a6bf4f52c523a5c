r"""Floor 1. The one pass over the vocabulary: Σ coefficient · term and its gradient, tile by tile, in one sweep.

Every coefficient is known before the gradient, so a tile of tokens can form its logits, its values *and* its
d logits at once, turn these into d hidden and d head, and forget them: four matrix products (student, teacher, two
for gradients), nothing computed twice, nothing of size tokens × V. The backward pass only scales what is there.

Over a mesh each device holds some columns of the vocabulary (`vocab_group.py`): normalisers and sums are a `psum` of
one number per token, a top k is a local top k and a merge. No head is whole on a device, nor its gradient.
"""

import functools
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec
from jaxtyping import Array, Bool, Float, Int

from opd_jax.losses import tile as tiles
from opd_jax.losses.terms import Term, WeightedTerm
from opd_jax.losses.tile import Reading
from opd_jax.losses.vocab_group import VocabGroup
from opd_jax.losses.vocab_reads import Reads, check
from opd_jax.losses.vocab_shard import Target, without_heads
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


def _tiled(x: Array, *, count: int, tile: int) -> Array:
  """[B, R, …] as `count` tiles of tokens, the last one padded."""
  flat = x.reshape(-1, *x.shape[2:])
  flat = jnp.pad(flat, ((0, count * tile - len(flat)), *((0, 0),) * (flat.ndim - 1)))
  return flat.reshape(count, tile, *flat.shape[1:])


def _sweep(
  hidden: Any,
  head,
  reads: Reads,
  *,
  widths: Mapping[str, int],
  group: VocabGroup,
  tile: int,
  gradients,
  diagnose,
):
  """The pass over the tokens of one device. Returns the loss, the reading, and gradients (or None).

  Args:
    widths: rows of every head, the student's under '', before devices shared them.
    tile: tokens of a group in one step.
  """
  rows = reads.response.shape
  size = rows[0] * rows[1]
  own = max(tile // group.share, 1)
  count = -(-size // own)

  narrow = group.head(head, widths[''], hidden.dtype)  # cast once, not in every tile
  heads = {
    name: group.head(target.head, widths[name], target.hidden.dtype)
    for name, target in reads.targets.items()
    if target.hidden is not None and target.head is not None
  }
  targets = without_heads(reads.targets)
  cut = functools.partial(_tiled, count=count, tile=own)
  pieces = jax.tree.map(cut, (hidden, reads.response, targets, reads.terms, reads.counts))
  wide = jnp.promote_types(jnp.float32, hidden.dtype)
  terms = tuple(weighted.term for weighted in reads.terms)
  body = functools.partial(tiles.read, terms=terms, columns=group.columns, diagnose=diagnose)

  def step(d_head, piece):
    reading, states, d_hidden, d_logits = body(group.together(piece), narrow, heads)
    if not gradients:
      return d_head, (group.own(reading), None)
    with jax.named_scope('d_hidden'):
      product = jnp.matmul(d_logits, narrow.T, preferred_element_type=wide)
      d_hidden = group.own(d_hidden) + group.summed(product)
    with jax.named_scope('d_head'):
      d_head = _added(d_head, states, d_logits)
    return d_head, (group.own(reading), d_hidden)

  zero = jnp.zeros(narrow.shape if gradients else (), wide)
  d_head, (reading, d_hidden) = jax.lax.scan(step, zero, pieces)
  whole = lambda x: x.reshape(count * own, *x.shape[2:])[:size].reshape(*rows, *x.shape[2:])
  reading, d_hidden = jax.tree.map(whole, (reading, d_hidden))
  parts = [
    jnp.where(weighted.coefficient != 0, weighted.coefficient * value, 0.0).sum()
    for weighted, value in zip(reads.terms, reading.values, strict=True)
  ]
  d_head = group.d_head(d_head) if gradients else None
  return group.everyone(functools.reduce(jnp.add, parts)), reading, d_hidden, d_head


def _distributed(
  hidden, head, reads: Reads, *, layout: Layout, share, tile, gradients, diagnose
) -> Any:
  """The same over a mesh."""
  tokens = -(-reads.response.size // (layout.size('batch') * layout.size('length')))
  group = VocabGroup.of(
    layout, width=head.shape[0], vocabulary=head.shape[1], tokens=tokens, share=share
  )
  tile = tile or tile_of(head.shape[0], group.columns.size)
  widths = {
    name: target.head.shape[0] for name, target in reads.targets.items() if target.head is not None
  }
  sweep = functools.partial(
    _sweep,
    widths=widths | {'': head.shape[0]},
    group=group,
    tile=min(tile, max(tokens, 1) * group.share),
    gradients=gradients,
    diagnose=diagnose,
  )
  if layout.is_single:
    return sweep(hidden, head, reads)
  given, specs = _laid(reads, group)
  shares: Any = jax.shard_map(
    sweep,
    mesh=group.mesh,
    in_specs=(group.tokens, group.stored, specs),
    out_specs=(
      (PartitionSpec(), group.tokens)
      + ((group.tokens, group.stored) if gradients else (None, None))
    ),
    check_vma=False,
  )
  loss, reading, d_hidden, d_head = shares(group.long(hidden), group.wide(head), given)
  reading, d_hidden = jax.tree.map(lambda x: x[:, : reads.response.shape[1]], (reading, d_hidden))
  return loss, reading, d_hidden, d_head[: head.shape[0]] if gradients else None


def _laid(reads: Reads, group: VocabGroup) -> tuple[Reads, Reads]:
  """What the pass reads, with axes that devices share evenly, and how it is cut."""
  long = group.long(reads._replace(targets=without_heads(reads.targets)))
  specs = jax.tree.map(lambda _: group.tokens, long)
  heads = {name: target.head for name, target in reads.targets.items() if target.head is not None}

  def of(targets, put):
    with_head = lambda name, target: (
      target._replace(head=put(heads[name])) if name in heads else target
    )
    return {name: with_head(name, target) for name, target in targets.items()}

  targets, cut = of(long.targets, group.wide), of(specs.targets, lambda head: group.stored)
  return long._replace(targets=targets), specs._replace(targets=cut)


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
  share: int | None = None,
  diagnose: str | None = None,
) -> tuple[Float[Array, ''], Reading]:
  """Σ over terms, rows and positions of coefficient · term, differentiable in `hidden` and `head`.

  Args:
    hidden: the student's states; those at [:, r] predict response[:, r].
    head: in the type it is stored in; the products are made in the type of `hidden`, d head comes back in its own.
    response: the written tokens.
    targets: what is known of each judge.
    terms: with their coefficients; a position without any coefficient adds nothing, whatever it holds.
    layout: whose mesh cuts rows (`batch`), columns of tokens (`length`) and the vocabulary (`vocab`).
    mask: positions whose reading is wanted; None takes those with a coefficient.
    tile: tokens per tile; None chooses from shapes.
    share: devices that cut by width share the vocabulary of this many; None chooses from shapes.
    diagnose: the judge that the reading compares the student with beyond what the terms need.
  """
  if not terms:
    raise ValueError(
      'vocabulary: no terms, so there is nothing to learn. A method returns at least one.'
    )
  reads = Reads(
    response, dict(targets), tuple(terms), jnp.zeros(response.shape, bool) if mask is None else mask
  )
  check(hidden, head, reads, layout)
  static = _static(layout, tile, share, diagnose)
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
  reads = Reads(response, dict(targets), tuple(term(zero) for term in terms.values()), mask)
  check(hidden, head, reads, layout)
  static: dict[str, Any] = dict(_static(layout, tile, None, None))
  reading = _distributed(hidden, head, reads, **static, gradients=False)[1]
  return {
    name: jnp.where(mask, value, 0.0) for name, value in zip(terms, reading.values, strict=True)
  }


def _static(layout: Layout, tile: int | None, share: int | None, diagnose: str | None):
  """What is part of the program."""
  return (('layout', layout), ('tile', tile), ('share', share), ('diagnose', diagnose))
