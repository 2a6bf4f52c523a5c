r"""Floor 1. The one pass over the vocabulary: Σ coefficient · term and its gradient, tile by tile, in one sweep.

Every coefficient is known before the gradient, so a tile of tokens can form its logits, its values *and* its
d logits at once, turn these into d hidden and d head, and forget them: four matrix products (student, teacher, two
for gradients), nothing computed twice, nothing of size tokens × V. The backward pass only scales what is there.

With the head cut along the vocabulary (`tensor`), each device holds its columns of a tile: normalisers and sums are
a `psum` of one number per token, a top k is a local top k and a merge. No array of size V is ever gathered.

Inside a tile the chain rule is written out once, through log p:
    d logits = g - p · Σ_v g,      g = Σ_terms coefficient · ∂ term / ∂ log p
"""

import functools
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec
from jaxtyping import Array, Float, Int

from opd_jax.losses import divergences
from opd_jax.losses.columns import Columns, Target, TileReader
from opd_jax.losses.supports import Rest
from opd_jax.losses.terms import HiddenDistance, OnSupport, OnToken, Term
from opd_jax.sharding import Layout
from opd_jax.types import AnyArray

TILE_BYTES = 40 * 2**20  # of float32 logits in a tile where the heads are narrow; a few such buffers live at once
HEAD_SHARE = 0.25  # a tile of a wide head takes this share of the head's own bytes


class Share(NamedTuple):
  """One term of a loss: Σ_{b,r} coefficient · term."""

  term: Term
  coefficient: Float[AnyArray, 'B R']  # weight · normaliser, already divided
  inputs: Mapping[str, AnyArray]  # what the term reads besides, each [B, R] or [B, R, D]


class Reading(NamedTuple):
  """What the sweep saw; no gradient flows through it. Entries where nothing counts mean nothing."""

  values: tuple[Float[Array, 'B R'], ...]  # of every share's term, undivided
  logp: Float[Array, 'B R']  # of the written token
  entropy: Float[Array, 'B R']
  teacher: Mapping[str, Float[Array, 'B R']]  # diagnostics, by name; what the target allows


def _product(hidden: Float[AnyArray, '*N D'], head: Float[AnyArray, 'D V']) -> Float[Array, '*N V']:
  wide = jnp.promote_types(jnp.float32, hidden.dtype)
  return jnp.matmul(hidden, head.astype(hidden.dtype), preferred_element_type=wide)


class _Sums(NamedTuple):
  """Gradients of a tile with respect to log p: elementwise, and at a few ids."""

  dense: list[Array]
  sparse: list[tuple[Array, Array]]  # ids, gradient


def _on_token(term: OnToken, logp, inputs, coefficient, response, sums: _Sums):
  value, pull = jax.vjp(lambda logp: term.value(logp, inputs), logp)
  gradient = jnp.where(coefficient != 0, pull(coefficient.astype(value.dtype))[0], 0.0)
  sums.sparse.append((response[:, None], gradient[:, None]))
  return value


def _on_hidden(term: HiddenDistance, hidden, inputs, coefficient):
  value, pull = jax.vjp(lambda hidden: term.value(hidden, inputs), hidden)
  return value, jnp.where((coefficient != 0)[:, None], pull(coefficient.astype(value.dtype))[0], 0.0)


def _elementwise(term: OnSupport, log_p: Float[Array, 'N V'], log_q: Float[Array, 'N V']):
  """Σ of entries and their pull, a block of columns at a time: what stands between needs no room of a tile's size."""
  size = log_p.shape[1]
  blocks = next(count for count in (8, 4, 2, 1) if size % count == 0)

  def add(number, carry):
    value, pulls = carry
    begin = number * (size // blocks)
    p, q = (jax.lax.dynamic_slice_in_dim(log, begin, size // blocks, axis=1) for log in (log_p, log_q))
    pulls = jax.lax.dynamic_update_slice_in_dim(pulls, term.divergence.pull(p, q), begin, axis=1)
    return value + term.divergence.entry(p, q).sum(axis=-1), pulls

  return jax.lax.fori_loop(0, blocks, add, (jnp.zeros(log_p.shape[:1], log_p.dtype), jnp.zeros_like(log_p)))


def _on_support(term: OnSupport, reader: TileReader, coefficient, sums: _Sums):
  columns, coefficient = reader.vocabulary, coefficient[:, None]
  entries = term.support.entries(reader)
  if entries is None:
    value, pull = _elementwise(term, reader.log_p, reader.need(term.name))
    value = columns.everywhere(value)
    keep = True if term.most is None else (value < term.most)[:, None]
    sums.dense.append(jnp.where((coefficient != 0) & keep, -coefficient * pull, 0.0))
  else:
    found = columns.pick(reader.log_p, entries.ids)
    rest = reader.rest(entries) if term.support.wants_rest else Rest()
    value, gradient = jax.vjp(lambda log_p: term.support.value(term.divergence, log_p, entries, rest), found)
    keep = True if term.most is None else (value < term.most)[:, None]
    weighted = jnp.where((coefficient != 0) & keep, gradient(coefficient[:, 0].astype(value.dtype))[0], 0.0)
    sums.sparse.append((entries.ids, weighted))
  return value if term.most is None else jnp.minimum(value, term.most)


def _tile(piece, head, teacher_head, *, terms: Sequence[Term], columns: Columns, diagnose: bool):
  """Everything about one tile of tokens: values, readings, d hidden, and hidden with d logits for d head."""
  hidden, response, target, shares = piece
  active = functools.reduce(jnp.logical_or, [share.coefficient != 0 for share in shares])
  hidden = jnp.where(active[:, None], hidden, 0)  # what padding holds may be anything, also NaN
  with jax.named_scope('student_head'):
    log_p = columns.log_softmax(_product(hidden, head))
  log_q = None
  if teacher_head is not None:
    with jax.named_scope('teacher_head'):
      log_q = columns.log_softmax(_product(jnp.where(active[:, None], target.hidden, 0), teacher_head))
  reader = TileReader(columns, log_p, log_q, target)
  logp = columns.pick(log_p, response[:, None])[:, 0]
  sums, d_hidden, values = _Sums([], []), jnp.zeros(hidden.shape, log_p.dtype), []
  with jax.named_scope('terms'):
    for term, (_, coefficient, inputs) in zip(terms, shares, strict=True):
      if isinstance(term, OnToken):
        values.append(_on_token(term, logp, inputs, coefficient, response, sums))
      elif isinstance(term, OnSupport):
        values.append(_on_support(term, reader, coefficient, sums))
      elif isinstance(term, HiddenDistance):
        value, slope = _on_hidden(term, hidden, inputs, coefficient)
        d_hidden = d_hidden + slope
        values.append(value)
      else:
        raise ValueError(f'vocabulary: {term!r} is no term this pass knows; see losses/terms.py.')
  chances = jnp.exp(log_p)
  mass = sum((gradient.sum(axis=-1) for _, gradient in sums.sparse), jnp.zeros_like(logp))
  if sums.dense:
    dense = functools.reduce(jnp.add, sums.dense)
    d_logits = dense - chances * (mass + columns.total(dense))[:, None]
  else:
    d_logits = -chances * mass[:, None]
  for ids, gradient in sums.sparse:
    d_logits = columns.scatter(d_logits, ids, gradient)
  d_logits = jnp.where(active[:, None], d_logits, 0.0).astype(hidden.dtype)
  entropy = -columns.total(jnp.where(chances > 0, chances * log_p, 0.0))
  reading = Reading(tuple(values), logp, entropy, _diagnostics(reader, log_p, log_q) if diagnose else {})
  return reading, hidden, d_hidden, d_logits


def _diagnostics(reader: TileReader, log_p, log_q) -> dict[str, Array]:
  columns, found = reader.vocabulary, {}
  if log_q is not None:
    found['entropy'] = -columns.total(jnp.where(log_q > -jnp.inf, jnp.exp(log_q) * log_q, 0.0))
    found['forward_kl'] = columns.total(divergences.forward_kl().entry(log_p, log_q))
    found['reverse_kl'] = columns.total(divergences.reverse_kl().entry(log_p, log_q))
  if reader.target.top_k is not None:
    ids, logp = reader.target.top_k
    mine = columns.top_k(log_p, ids.shape[-1]).ids
    found['mass'] = jnp.exp(logp).sum(axis=-1)
    found['student_mass'] = jnp.exp(columns.pick(log_p, ids)).sum(axis=-1)
    found['overlap'] = (ids[:, :, None] == mine[:, None, :]).any(axis=-1).mean(axis=-1, dtype=log_p.dtype)
  return found


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


def _sweep(hidden, head, response, target: Target, shares, *, columns: Columns, tile: int, gradients: bool, diagnose):
  """The pass over the tokens of one device. Returns the loss, the reading, and gradients (or None)."""
  rows = response.shape
  size = rows[0] * rows[1]
  count = -(-size // tile)
  terms = tuple(share.term for share in shares)

  def cut(x):
    flat = x.reshape(size, *x.shape[2:])
    return jnp.pad(flat, ((0, count * tile - size), *((0, 0),) * (flat.ndim - 1))).reshape(count, tile, *flat.shape[1:])

  # Cast once, not in every tile.
  narrow, narrow_teacher = head.astype(hidden.dtype), None
  if target.hidden is not None and target.head is not None:
    narrow_teacher = target.head.astype(target.hidden.dtype)
  pieces = jax.tree.map(cut, (hidden, response, target._replace(head=None), shares))
  wide = jnp.promote_types(jnp.float32, hidden.dtype)
  body = functools.partial(_tile, terms=terms, columns=columns, diagnose=diagnose)

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
    jnp.where(share.coefficient != 0, share.coefficient * value, 0.0).sum()
    for share, value in zip(shares, reading.values, strict=True)
  ]
  return functools.reduce(jnp.add, parts), reading, d_hidden, d_head


def _distributed(hidden, head, response, target: Target, shares, *, layout: Layout, tile, gradients, diagnose):
  """The same over a mesh: tokens by batch, the heads by vocabulary."""
  axes = tuple(axis for axis in layout.mesh_axes('vocab') if layout.mesh.shape[axis] > 1)
  columns = Columns(axes, head.shape[1] // layout.size('vocab'))
  sweep = functools.partial(_sweep, columns=columns, tile=tile, gradients=gradients, diagnose=diagnose)
  if layout.is_single:
    return sweep(hidden, head, response, target, shares)
  batch = layout.mesh_axes('batch')
  by_row = layout.spec('batch')
  by_column = PartitionSpec(None, layout.spec('vocab')[0])

  def body(hidden, head, response, target, shares):
    loss, reading, d_hidden, d_head = sweep(hidden, head, response, target, shares)
    loss = jax.lax.psum(loss, batch)
    return loss, reading, d_hidden, jax.lax.psum(d_head, batch) if gradients else d_head

  specs = jax.tree.map(lambda _: by_row, (response, target._replace(head=None), shares))
  if target.head is not None:
    specs = specs[0], specs[1]._replace(head=by_column), specs[2]
  out = PartitionSpec(), by_row, by_row if gradients else None, by_column if gradients else PartitionSpec()
  return jax.shard_map(body, mesh=layout.mesh, in_specs=(by_row, by_column, *specs), out_specs=out, check_vma=False)(
    hidden, head, response, target, shares
  )


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _summed(static, hidden, head, rest):
  loss, reading, *_ = _distributed(hidden, head, *rest, **dict(static), gradients=False)
  return loss, reading


def _summed_forward(static, hidden, head, rest):
  loss, reading, d_hidden, d_head = _distributed(hidden, head, *rest, **dict(static), gradients=True)
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
  shares: Sequence[Share],
  *,
  layout: Layout,
  tile: int | None = None,
  diagnose: bool = False,
) -> tuple[Float[Array, ''], Reading]:
  """Σ over shares, rows and positions of coefficient · term, differentiable in `hidden` and `head`.

  Args:
    hidden: the student's states; those at [:, r] predict response[:, r].
    head: in the type it is stored in; the products are made in the type of `hidden`, d head comes back in its own.
    response: the written tokens.
    target: what is known of the teacher.
    shares: terms with their coefficients; a position without any coefficient is inert, whatever it holds.
    layout: whose mesh cuts rows (`batch`) and the vocabulary (`vocab`).
    tile: tokens per tile; None chooses from shapes.
    diagnose: whether the reading compares the models beyond what the terms need.
  """
  if not shares:
    raise ValueError('vocabulary: no shares, so there is nothing to learn. A method returns at least one.')
  _check(hidden, head, response, target, shares, layout)
  tile = tile or tile_of(hidden.shape[-1], head.shape[-1] // layout.size('vocab'))
  local = -(-response.size // layout.size('batch'))
  static = (('layout', layout), ('tile', min(tile, max(local, 1))), ('diagnose', diagnose))
  summed: Any = _summed  # what is not hidden or head has no gradient: its backward pass says so
  return summed(static, hidden, head, (response, target, tuple(shares)))


def _check(hidden, head, response, target: Target, shares, layout: Layout) -> None:
  if (target.hidden is None) != (target.head is None):
    raise ValueError("vocabulary: the teacher's hidden states and its head belong together; one of them is missing.")
  if target.head is not None and target.head.shape[1] != head.shape[1]:
    raise ValueError(
      f'vocabulary: the student has {head.shape[1]} entries, the teacher {target.head.shape[1]}. Position by position '
      'they can only be compared over one vocabulary.'
    )
  for what, size, axis in (('rows', hidden.shape[0], 'batch'), ('entries of the vocabulary', head.shape[1], 'vocab')):
    if size % layout.size(axis):
      raise ValueError(f'vocabulary: {size} {what} cannot be shared evenly by {layout.size(axis)} devices ({axis!r}).')
  for share in shares:
    if share.coefficient.shape != response.shape:
      raise ValueError(
        f'vocabulary: the coefficient of {share.term.name} has shape {share.coefficient.shape}, the response '
        f'{response.shape}.'
      )
    if missing := [name for name in share.term.reads if name not in share.inputs]:
      raise ValueError(f'vocabulary: {share.term.name} reads {missing}; its share has only {sorted(share.inputs)}.')


def dense(hidden, head, response, target: Target, shares) -> Array:
  """The reference for tests: whole arrays of logits and plain differentiation. Needs the teacher's hidden states."""
  log = lambda states, matrix: jax.nn.log_softmax(_product(states, matrix), axis=-1)
  log_p, loss = log(hidden, head), jnp.zeros(())
  log_q = None if target.hidden is None else jax.lax.stop_gradient(log(target.hidden, target.head))
  for term, coefficient, inputs in shares:
    if isinstance(term, OnToken):
      value = term.value(jnp.take_along_axis(log_p, response[..., None], axis=-1)[..., 0], inputs)
    elif isinstance(term, HiddenDistance):
      value = term.value(hidden, inputs)
    else:
      value = _dense_support(term, log_p, log_q, target)
    loss = loss + (coefficient * value).sum()
  return loss


def _dense_support(term: OnSupport, log_p, log_q, target: Target):
  columns = Columns((), log_p.shape[-1])
  flat = lambda x: x.reshape(-1, x.shape[-1])
  flat_target = jax.tree.map(flat, target._replace(hidden=None, head=None))
  reader = TileReader(columns, jax.lax.stop_gradient(flat(log_p)), None if log_q is None else flat(log_q), flat_target)
  entries = term.support.entries(reader)
  if entries is None:
    value = term.divergence(flat(log_p), flat(log_q))
  else:
    value = term.support.value(term.divergence, jnp.take_along_axis(flat(log_p), entries.ids, axis=-1), entries, Rest())
  value = value if term.most is None else jnp.minimum(value, term.most)
  return value.reshape(log_p.shape[:-1])
