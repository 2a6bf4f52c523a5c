r"""Floor 1. One tile of tokens: logits, values, readings and d logits, formed together and forgotten together.

The chain rule is written out once, through log p:
    d logits = g - p · Σ_v g,      g = Σ_terms coefficient · ∂ term / ∂ log p
"""

import functools
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from opd_jax.losses import divergences
from opd_jax.losses.supports import OutsideMass
from opd_jax.losses.terms import HiddenDistance, OnSupport, OnToken, Term
from opd_jax.losses.vocab_shard import TileView, VocabShard
from opd_jax.types import AnyArray

BLOCK = 2**20  # entries; less is not worth a loop


class Reading(NamedTuple):
  """What the sweep saw; no gradient flows through it. Entries at positions that do not count mean nothing."""

  values: tuple[Float[Array, 'B R'], ...]  # of every share's term, undivided
  logp: Float[Array, 'B R']  # of the written token
  entropy: Float[Array, 'B R']
  teacher: Mapping[str, Float[Array, 'B R']]  # diagnostics, by name; what the target allows


def product(hidden: Float[AnyArray, '*N D'], head: Float[AnyArray, 'D V']) -> Float[Array, '*N V']:
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
  return value, jnp.where(
    (coefficient != 0)[:, None], pull(coefficient.astype(value.dtype))[0], 0.0
  )


def _elementwise(term: OnSupport, log_p: Float[Array, 'N V'], log_q: Float[Array, 'N V']):
  """Σ of entries and their pull, a block of columns at a time: what stands between needs no room of a tile's size."""
  size = log_p.shape[1]
  blocks = next(
    count
    for count in (8, 4, 2, 1)
    if size % count == 0 and (log_p.size // count >= BLOCK or count == 1)
  )
  if blocks == 1:
    return term.divergence.entry(log_p, log_q).sum(axis=-1), term.divergence.pull(log_p, log_q)

  def add(number, carry):
    value, pulls = carry
    begin = number * (size // blocks)
    p, q = (
      jax.lax.dynamic_slice_in_dim(log, begin, size // blocks, axis=1) for log in (log_p, log_q)
    )
    pulls = jax.lax.dynamic_update_slice_in_dim(pulls, term.divergence.pull(p, q), begin, axis=1)
    return value + term.divergence.entry(p, q).sum(axis=-1), pulls

  return jax.lax.fori_loop(
    0, blocks, add, (jnp.zeros(log_p.shape[:1], log_p.dtype), jnp.zeros_like(log_p))
  )


def _on_support(term: OnSupport, reader: TileView, coefficient, sums: _Sums):
  columns, coefficient = reader.vocabulary, coefficient[:, None]
  entries = term.support.entries(reader)
  if entries is None:
    value, pull = _elementwise(term, reader.log_p, reader.need(term.name))
    value = columns.everywhere(value)
    keep = True if term.most is None else (value < term.most)[:, None]
    sums.dense.append(jnp.where((coefficient != 0) & keep, -coefficient * pull, 0.0))
  else:
    found = columns.pick(reader.log_p, entries.ids)
    rest = reader.rest(entries) if term.support.wants_rest else OutsideMass()
    value_of = lambda log_p, outside: term.support.value(
      term.divergence, log_p, entries, rest._replace(log_p=outside)
    )
    value, pull = jax.vjp(value_of, found, rest.log_p)
    keep = (
      (coefficient != 0) if term.most is None else (coefficient != 0) & (value < term.most)[:, None]
    )
    inside, outside = pull(coefficient[:, 0].astype(value.dtype))
    sums.sparse.append((entries.ids, jnp.where(keep & entries.valid, inside, 0.0)))
    if rest.log_p is not None:
      # Every entry outside has its share of the rest: summed there, never as one minus what is inside.
      others = jnp.exp(
        columns.without(reader.log_p, entries.ids, entries.valid) - rest.log_p[:, None]
      )
      alive = keep & (rest.log_p > -jnp.inf)[:, None]
      sums.dense.append(jnp.where(alive, outside[:, None] * others, 0.0))
  return value if term.most is None else jnp.minimum(value, term.most)


def read(piece, head, teacher_head, *, terms: Sequence[Term], columns: VocabShard, diagnose: bool):
  """Everything about one tile of tokens: values, readings, d hidden, and hidden with d logits for d head."""
  hidden, response, target, weighted_terms, counts = piece
  active = functools.reduce(
    jnp.logical_or, [weighted.coefficient != 0 for weighted in weighted_terms], counts
  )
  hidden = jnp.where(active[:, None], hidden, 0)  # what padding holds may be anything, also NaN
  with jax.named_scope('student_head'):
    log_p = columns.log_softmax(product(hidden, head))
  log_q = None
  if teacher_head is not None:
    with jax.named_scope('teacher_head'):
      log_q = columns.log_softmax(
        product(jnp.where(active[:, None], target.hidden, 0), teacher_head)
      )
  reader = TileView(columns, log_p, log_q, target)
  logp = columns.pick(log_p, response[:, None])[:, 0]
  sums, d_hidden, values = _Sums([], []), jnp.zeros(hidden.shape, log_p.dtype), []
  with jax.named_scope('terms'):
    for term, (_, coefficient, inputs) in zip(terms, weighted_terms, strict=True):
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
  reading = Reading(
    tuple(values), logp, entropy, _diagnostics(reader, log_p, log_q) if diagnose else {}
  )
  return reading, hidden, d_hidden, d_logits


def _diagnostics(reader: TileView, log_p, log_q) -> dict[str, Array]:
  columns, found = reader.vocabulary, {}
  if log_q is not None:
    found['entropy'] = -columns.total(jnp.where(log_q > -jnp.inf, jnp.exp(log_q) * log_q, 0.0))
    same = columns.total((columns.best(log_p) & columns.best(log_q)).astype(log_p.dtype))
    found['agreement'] = (same > 0).astype(log_p.dtype)
    found['forward_kl'] = columns.total(divergences.forward_kl().entry(log_p, log_q))
    found['reverse_kl'] = columns.total(divergences.reverse_kl().entry(log_p, log_q))
  if reader.target.top_k is not None:
    ids, logp = reader.target.top_k
    known = (ids >= 0) & (ids < reader.size)
    inside = lambda x: jnp.where(known, x, 0.0).sum(axis=-1)
    mine = columns.top_k(log_p, ids.shape[-1]).ids
    found['mass'] = inside(jnp.exp(logp))
    found['student_mass'] = inside(jnp.exp(columns.pick(log_p, ids)))
    found['overlap'] = inside((ids[:, :, None] == mine[:, None, :]).any(axis=-1)) / jnp.maximum(
      known.sum(axis=-1), 1
    )
  return found
