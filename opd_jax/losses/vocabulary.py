r"""Floor 1. The one pass over the vocabulary: Σ coefficient · term and its gradient, tile by tile, in one sweep.

Every coefficient is known before the gradient, so a tile of tokens can form its logits, its values *and* its
d logits at once, turn these into d hidden and d head, and forget them: four matrix products (student, teacher, two
for gradients), nothing computed twice, nothing of size tokens × V. The backward pass only scales what is there.

With the head cut along the vocabulary (`tensor`), each device holds its columns of a tile: normalisers and sums are
a `psum` of one number per token, a top k is a local top k and a merge. No array of size V is ever gathered.
"""

import functools
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec
from jaxtyping import Array, Bool, Float, Int

from opd_jax.losses import tile as tiles
from opd_jax.losses.supports import OutsideMass
from opd_jax.losses.terms import HiddenDistance, OnSupport, OnToken, Term
from opd_jax.losses.tile import Reading
from opd_jax.losses.vocab_shard import Target, TileView, VocabShard
from opd_jax.sharding import Layout
from opd_jax.types import AnyArray

TILE_BYTES = (
  40 * 2**20
)  # of float32 logits in a tile where the heads are narrow; a few such buffers live at once
HEAD_SHARE = 0.25  # a tile of a wide head takes this share of the head's own bytes


class WeightedTerm(NamedTuple):
  """One term of a loss: Σ_{b,r} coefficient · term."""

  term: Term
  coefficient: Float[AnyArray, 'B R']  # weight · normaliser, already divided
  inputs: Mapping[str, AnyArray]  # what the term reads besides, each [B, R] or [B, R, D]


def tile_of(width: int, vocabulary: int) -> int:
  """Tokens of a tile, from shapes alone: narrow heads want logits that stay small, wide ones pay to revisit d head.

  It never depends on the number of tokens, so memory does not either.
  """
  narrow = TILE_BYTES // (4 * vocabulary)
  wide = int(HEAD_SHARE * width)
  return max(16, 1 << (max(narrow, wide, 1).bit_length() - 1))


def _added(
  d_head: Float[Array, 'D V'], states: Float[Array, 'N D'], d_logits: Float[Array, 'N V']
) -> Float[Array, 'D V']:
  """d_head + statesᵀ d_logits, a block of rows at a time: the sum of a whole wide head would be a second one."""
  width, block = d_head.shape[0], states.shape[0]
  if width <= block or width % block:
    return d_head + jnp.matmul(states.T, d_logits, preferred_element_type=d_head.dtype)

  def add(number, d_head):
    begin = number * block
    part = jax.lax.dynamic_slice_in_dim(states, begin, block, axis=1)
    old = jax.lax.dynamic_slice_in_dim(d_head, begin, block, axis=0)
    new = old + jnp.matmul(part.T, d_logits, preferred_element_type=d_head.dtype)
    return jax.lax.dynamic_update_slice_in_dim(d_head, new, begin, axis=0)

  return jax.lax.fori_loop(0, width // block, add, d_head)


def _sweep(
  hidden,
  head,
  response,
  target: Target,
  weighted_terms,
  counts,
  *,
  columns,
  tile: int,
  gradients: bool,
  diagnose,
):
  """The pass over the tokens of one device. Returns the loss, the reading, and gradients (or None)."""
  rows = response.shape
  size = rows[0] * rows[1]
  count = -(-size // tile)
  terms = tuple(weighted.term for weighted in weighted_terms)

  def cut(x):
    flat = x.reshape(size, *x.shape[2:])
    return jnp.pad(flat, ((0, count * tile - size), *((0, 0),) * (flat.ndim - 1))).reshape(
      count, tile, *flat.shape[1:]
    )

  # Cast once, not in every tile.
  narrow, narrow_teacher = head.astype(hidden.dtype), None
  if target.hidden is not None and target.head is not None:
    narrow_teacher = target.head.astype(target.hidden.dtype)
  pieces = jax.tree.map(cut, (hidden, response, target._replace(head=None), weighted_terms, counts))
  wide = jnp.promote_types(jnp.float32, hidden.dtype)
  body = functools.partial(tiles.read, terms=terms, columns=columns, diagnose=diagnose)

  def step(d_head, piece):
    reading, states, d_hidden, d_logits = body(piece, narrow, narrow_teacher)
    if not gradients:
      return d_head, (reading, None)
    with jax.named_scope('d_hidden'):
      product = jnp.matmul(d_logits, narrow.T, preferred_element_type=wide)
      d_hidden = d_hidden + columns.everywhere(product)
    with jax.named_scope('d_head'):
      d_head = _added(d_head, states, d_logits)
    return d_head, (reading, d_hidden)

  d_head = jnp.zeros(head.shape, wide) if gradients else jnp.zeros(())
  d_head, (reading, d_hidden) = jax.lax.scan(step, d_head, pieces)
  whole = lambda x: x.reshape(count * tile, *x.shape[2:])[:size].reshape(*rows, *x.shape[2:])
  reading, d_hidden = jax.tree.map(whole, (reading, d_hidden))
  parts = [
    jnp.where(weighted.coefficient != 0, weighted.coefficient * value, 0.0).sum()
    for weighted, value in zip(weighted_terms, reading.values, strict=True)
  ]
  return functools.reduce(jnp.add, parts), reading, d_hidden, d_head


def _distributed(
  hidden,
  head,
  response,
  target: Target,
  weighted_terms,
  counts,
  *,
  layout: Layout,
  tile,
  gradients,
  diagnose,
):
  """The same over a mesh: tokens by batch, the heads by vocabulary."""
  axes = tuple(axis for axis in layout.mesh_axes('vocab') if layout.mesh.shape[axis] > 1)
  columns = VocabShard(axes, head.shape[1] // layout.size('vocab'))
  sweep = functools.partial(
    _sweep, columns=columns, tile=tile, gradients=gradients, diagnose=diagnose
  )
  if layout.is_single:
    return sweep(hidden, head, response, target, weighted_terms, counts)
  batch = layout.mesh_axes('batch')
  by_row = layout.spec('batch')
  by_column = PartitionSpec(None, layout.spec('vocab')[0])

  def body(*arguments):
    loss, reading, d_hidden, d_head = sweep(*arguments)
    loss = jax.lax.psum(loss, batch)
    return loss, reading, d_hidden, jax.lax.psum(d_head, batch) if gradients else d_head

  specs = jax.tree.map(
    lambda _: by_row, (response, target._replace(head=None), weighted_terms, counts)
  )
  if target.head is not None:
    specs = specs[0], specs[1]._replace(head=by_column), *specs[2:]
  out = (
    PartitionSpec(),
    by_row,
    by_row if gradients else None,
    by_column if gradients else PartitionSpec(),
  )
  return jax.shard_map(
    body, mesh=layout.mesh, in_specs=(by_row, by_column, *specs), out_specs=out, check_vma=False
  )(hidden, head, response, target, weighted_terms, counts)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _summed(static, hidden, head, rest):
  loss, reading, *_ = _distributed(hidden, head, *rest, **dict(static), gradients=False)
  return loss, reading


def _summed_forward(static, hidden, head, rest):
  loss, reading, d_hidden, d_head = _distributed(
    hidden, head, *rest, **dict(static), gradients=True
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
  target: Target,
  weighted_terms: Sequence[WeightedTerm],
  *,
  layout: Layout,
  mask: Bool[AnyArray, 'B R'] | None = None,
  tile: int | None = None,
  diagnose: bool = False,
) -> tuple[Float[Array, ''], Reading]:
  """Σ over weighted_terms, rows and positions of coefficient · term, differentiable in `hidden` and `head`.

  Args:
    hidden: the student's states; those at [:, r] predict response[:, r].
    head: in the type it is stored in; the products are made in the type of `hidden`, d head comes back in its own.
    response: the written tokens.
    target: what is known of the teacher.
    weighted_terms: terms with their coefficients; a position without any coefficient adds nothing, whatever it holds.
    layout: whose mesh cuts rows (`batch`) and the vocabulary (`vocab`).
    mask: positions whose reading is wanted; None takes those with a coefficient.
    tile: tokens per tile; None chooses from shapes.
    diagnose: whether the reading compares the models beyond what the terms need.
  """
  if not weighted_terms:
    raise ValueError(
      'vocabulary: no weighted_terms, so there is nothing to learn. A method returns at least one.'
    )
  _check(hidden, head, response, target, weighted_terms, layout)
  tile = tile or tile_of(hidden.shape[-1], head.shape[-1] // layout.size('vocab'))
  local = -(-response.size // layout.size('batch'))
  static = (('layout', layout), ('tile', min(tile, max(local, 1))), ('diagnose', diagnose))
  summed: Any = _summed  # what is not hidden or head has no gradient: its backward pass says so
  counts = jnp.zeros(response.shape, bool) if mask is None else mask
  return summed(static, hidden, head, (response, target, tuple(weighted_terms), counts))


def _check(hidden, head, response, target: Target, weighted_terms, layout: Layout) -> None:
  if (target.hidden is None) != (target.head is None):
    raise ValueError(
      "vocabulary: the teacher's hidden states and its head belong together; one of them is missing."
    )
  if target.head is not None and target.head.shape[1] != head.shape[1]:
    raise ValueError(
      f'vocabulary: the student has {head.shape[1]} entries, the teacher {target.head.shape[1]}. Position by position '
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
  given = {'the hidden states': hidden, "the teacher's hidden states": target.hidden}
  for what, top in (('top k', target.top_k), ('log-probabilities at ids', target.at_ids)):
    if top is not None:
      given |= {f"the ids of the teacher's {what}": top.ids, f"the teacher's {what}": top.logp}
  for weighted in weighted_terms:
    given[f'the coefficient of {weighted.term.name}'] = weighted.coefficient
    given |= {
      f'the input {name!r} of {weighted.term.name}': value
      for name, value in weighted.inputs.items()
    }
    if missing := [name for name in weighted.term.reads if name not in weighted.inputs]:
      raise ValueError(
        f'vocabulary: {weighted.term.name} reads {missing}; its inputs are {sorted(weighted.inputs)}.'
      )
  for what, array in given.items():
    if array is not None and array.shape[:2] != response.shape:
      raise ValueError(
        f'vocabulary: {what} are of shape {array.shape}, the response is of shape {response.shape}.'
      )


def dense(hidden, head, response, target: Target, weighted_terms) -> Array:
  """The reference for tests: whole arrays of logits and plain differentiation. Needs the teacher's hidden states."""
  log = lambda states, matrix: jax.nn.log_softmax(tiles.product(states, matrix), axis=-1)
  log_p, loss = log(hidden, head), jnp.zeros(())
  log_q = None if target.hidden is None else jax.lax.stop_gradient(log(target.hidden, target.head))
  for term, coefficient, inputs in weighted_terms:
    if isinstance(term, OnToken):
      value = term.value(jnp.take_along_axis(log_p, response[..., None], axis=-1)[..., 0], inputs)
    elif isinstance(term, HiddenDistance):
      value = term.value(hidden, inputs)
    else:
      value = _dense_support(term, log_p, log_q, target)
    loss = loss + (coefficient * value).sum()
  return loss


def _dense_support(term: OnSupport, log_p, log_q, target: Target):
  columns = VocabShard((), log_p.shape[-1])
  flat = lambda x: x.reshape(-1, x.shape[-1])
  flat_target = jax.tree.map(flat, target._replace(hidden=None, head=None))
  reader = TileView(
    columns, jax.lax.stop_gradient(flat(log_p)), None if log_q is None else flat(log_q), flat_target
  )
  entries = term.support.entries(reader)
  if entries is None:
    value = term.divergence(flat(log_p), flat(log_q))
  else:
    value = term.support.value(
      term.divergence,
      jnp.take_along_axis(flat(log_p), entries.ids, axis=-1),
      entries,
      OutsideMass(),
    )
  value = value if term.most is None else jnp.minimum(value, term.most)
  return value.reshape(log_p.shape[:-1])
