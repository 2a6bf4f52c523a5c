r"""Floor 1. One tile of tokens: logits, values, readings and d logits, formed together and forgotten together.

The chain rule is written out once, through log p:
    d logits = g - p · Σ_v g,      g = Σ_terms coefficient · ∂ term / ∂ log p
and the same with p at another temperature, divided by it, for terms that have one.
"""

import functools
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from opd_jax.losses.divergences import ForwardKL, ReverseKL
from opd_jax.losses.rest_rules import OutsideMass
from opd_jax.losses.terms import AtIds, DivergenceTerm, HiddenDistance, OnToken, Term
from opd_jax.losses.vocab_shard import Target, TileView, VocabShard
from opd_jax.types import AnyArray

BLOCK = 2**20  # entries; less is not worth a loop


class Reading(NamedTuple):
  """What the sweep saw; no gradient flows through it. Entries at positions that do not count mean nothing."""

  values: tuple[Float[Array, 'B R'], ...]  # of every term, undivided
  logp: Float[Array, 'B R']  # of the written token
  entropy: Float[Array, 'B R']
  teacher: Mapping[str, Float[Array, 'B R']]  # diagnostics, by name; what the target allows


def product(hidden: Float[AnyArray, '*N D'], head: Float[AnyArray, 'D V']) -> Float[Array, '*N V']:
  """Logits, summed in float32 at least."""
  wide = jnp.promote_types(jnp.float32, hidden.dtype)
  return jnp.matmul(hidden, head.astype(hidden.dtype), preferred_element_type=wide)


class _Sums(NamedTuple):
  """Gradients of a tile with respect to log p: elementwise, and at a few ids."""

  dense: list[Array]
  sparse: list[tuple[Array, Array]]  # ids, gradient

  def logits(self, columns: VocabShard, log_p: Array) -> Array:
    """The gradient with respect to the logits."""
    probs = jnp.exp(log_p)
    parts = (gradient.sum(axis=-1) for _, gradient in self.sparse)
    mass = sum(parts, jnp.zeros(log_p.shape[:1], log_p.dtype))
    if self.dense:
      dense = functools.reduce(jnp.add, self.dense)
      d_logits = dense - probs * (mass + columns.total(dense))[:, None]
    else:
      d_logits = -probs * mass[:, None]
    for ids, gradient in self.sparse:
      d_logits = columns.scatter(d_logits, ids, gradient)
    return d_logits


def _on_token(term: OnToken, logp, inputs, coefficient, response, sums: _Sums):
  value, pull = jax.vjp(lambda logp: term.value(logp, inputs), logp)
  gradient = jnp.where(coefficient != 0, pull(coefficient.astype(value.dtype))[0], 0.0)
  sums.sparse.append((response[:, None], gradient[:, None]))
  return value


def _at_ids(term: AtIds, columns: VocabShard, log_p, inputs, coefficient, sums: _Sums):
  ids = inputs['ids']
  valid = (ids >= 0) & (ids < columns.whole)
  inside = lambda x: jnp.where(valid, x.astype(log_p.dtype), 0.0)
  others = {name: inside(x) for name, x in inputs.items() if name != 'ids'}
  value, pull = jax.vjp(lambda logp: term.value(logp, others), inside(columns.pick(log_p, ids)))
  gradient = pull(coefficient.astype(value.dtype))[0]
  sums.sparse.append((ids, jnp.where(valid & (coefficient != 0)[:, None], gradient, 0.0)))
  return value


def _on_hidden(term: HiddenDistance, hidden, inputs, coefficient):
  value, pull = jax.vjp(lambda hidden: term.value(hidden, inputs), hidden)
  gradient = pull(coefficient.astype(value.dtype))[0]
  return value, jnp.where((coefficient != 0)[:, None], gradient, 0.0)


def _elementwise(
  term: DivergenceTerm, log_p: Float[Array, 'N V'], log_q: Float[Array, 'N V']
) -> tuple[Array, Array]:
  """Σ of entries, and their pull: whole where the compiler fuses, else in column blocks.

  Blocks keep XLA:CPU's intermediates below a tile's size. XLA:GPU fuses the whole; blocks cost 13 % there.
  """
  size, divergence = log_p.shape[1], term.divergence
  blocks = next(
    count
    for count in (8, 4, 2, 1)
    if size % count == 0 and (log_p.size // count >= BLOCK or count == 1)
  )

  def whole(log_p, log_q):
    return divergence.entry(log_p, log_q).sum(axis=-1), divergence.pull(log_p, log_q)

  def by_block(log_p, log_q):
    def add(number, carry):
      value, pulls = carry
      begin, width = number * (size // blocks), size // blocks
      part_p, part_q = (
        jax.lax.dynamic_slice_in_dim(log, begin, width, axis=1) for log in (log_p, log_q)
      )
      pull = divergence.pull(part_p, part_q)
      pulls = jax.lax.dynamic_update_slice_in_dim(pulls, pull, begin, axis=1)
      return value + divergence.entry(part_p, part_q).sum(axis=-1), pulls

    start = jnp.zeros(log_p.shape[:1], log_p.dtype), jnp.zeros_like(log_p)
    return jax.lax.fori_loop(0, blocks, add, start)

  if blocks == 1:
    return whole(log_p, log_q)
  return jax.lax.platform_dependent(log_p, log_q, cuda=whole, default=by_block)


def _on_support(term: DivergenceTerm, view: TileView, coefficient, sums: _Sums):
  columns, coefficient = view.vocabulary, coefficient[:, None]
  compared, bound = term.support.entries.find(view), term.max_per_token
  if compared is None:
    value, pull = _elementwise(term, view.log_p, view.need(term.name))
    value = columns.everywhere(value)
    keep = True if bound is None else (value < bound)[:, None]
    sums.dense.append(jnp.where((coefficient != 0) & keep, -coefficient * pull, 0.0))
    return value if bound is None else jnp.minimum(value, bound)
  picked = columns.pick(view.log_p, compared.ids)
  outside = view.outside(compared) if term.support.reads_outside else OutsideMass()
  value_of = lambda log_p, rest: term.support.value(
    term.divergence, log_p, compared, outside._replace(log_p=rest)
  )
  value, pull = jax.vjp(value_of, picked, outside.log_p)
  keep = coefficient != 0
  keep = keep if bound is None else keep & (value < bound)[:, None]
  inside, rest = pull(coefficient[:, 0].astype(value.dtype))
  sums.sparse.append((compared.ids, jnp.where(keep & compared.valid, inside, 0.0)))
  if outside.log_p is not None:
    # Every entry outside has its part of the rest: summed there, never as one minus what is inside.
    others = columns.without(view.log_p, compared.ids, compared.valid) - outside.log_p[:, None]
    alive = keep & (outside.log_p > -jnp.inf)[:, None]
    sums.dense.append(jnp.where(alive, rest[:, None] * jnp.exp(others), 0.0))
  return value if bound is None else jnp.minimum(value, bound)


def _views(hidden, head, active, targets, heads, columns: VocabShard) -> dict[str, TileView]:
  """The student beside each judge; '' where there is none."""
  with jax.named_scope('student_head'):
    log_p = columns.log_softmax(product(hidden, head))
  views = {'': TileView(columns, log_p, None, Target(), 'student')}
  for name, target in targets.items():
    log_q = None
    if heads.get(name) is not None:
      with jax.named_scope('teacher_head'):
        states = jnp.where(active[:, None], target.hidden, 0)
        log_q = columns.log_softmax(product(states, heads[name]))
    views[name] = TileView(columns, log_p, log_q, target, name)
  return views


def read(piece, head, heads, *, terms: Sequence[Term], columns: VocabShard, diagnose: str | None):
  """Everything about one tile of tokens: values, readings, d hidden, and hidden with d logits for d head."""
  hidden, response, targets, weighted_terms, counts = piece
  active = functools.reduce(
    jnp.logical_or, [weighted.coefficient != 0 for weighted in weighted_terms], counts
  )
  hidden = jnp.where(active[:, None], hidden, 0)  # what padding holds may be anything, also NaN
  views = _views(hidden, head, active, targets, heads, columns)
  log_p = views[''].log_p
  logp = columns.pick(log_p, response[:, None])[:, 0]
  d_hidden, values = jnp.zeros(hidden.shape, log_p.dtype), []
  sums: dict[float, tuple[Array, _Sums]] = {1.0: (log_p, _Sums([], []))}
  with jax.named_scope('terms'):
    for term, (_, coefficient, inputs) in zip(terms, weighted_terms, strict=True):
      if isinstance(term, OnToken):
        values.append(_on_token(term, logp, inputs, coefficient, response, sums[1.0][1]))
      elif isinstance(term, AtIds):
        values.append(_at_ids(term, columns, log_p, inputs, coefficient, sums[1.0][1]))
      elif isinstance(term, HiddenDistance):
        value, gradient = _on_hidden(term, hidden, inputs, coefficient)
        d_hidden = d_hidden + gradient
        values.append(value)
      elif isinstance(term, DivergenceTerm):
        view = views[term.of].tempered(term.temperature)
        _, own = sums.setdefault(term.temperature, (view.log_p, _Sums([], [])))
        ratio = jnp.ones_like(logp)
        if term.ratio is not None:
          ratio = term.ratio.value(logp, inputs['behaviour_logp'])
        corrected = jnp.where(coefficient != 0, ratio * coefficient, 0.0)
        values.append(ratio * _on_support(term, view, corrected, own))
      else:
        raise ValueError(f'vocabulary: {term!r} is no term this pass knows; see losses/terms.py.')
  parts = [own.logits(columns, log) / heat for heat, (log, own) in sums.items()]
  d_logits = functools.reduce(jnp.add, parts)
  d_logits = jnp.where(active[:, None], d_logits, 0.0).astype(hidden.dtype)
  probs = jnp.exp(log_p)
  entropy = -columns.total(jnp.where(probs > 0, probs * log_p, 0.0))
  seen = _diagnostics(views[diagnose]) if diagnose else {}
  return Reading(tuple(values), logp, entropy, seen), hidden, d_hidden, d_logits


def _diagnostics(view: TileView) -> dict[str, Array]:
  """How the student stands to a judge, beyond what the terms need."""
  columns, log_p, log_q, seen = view.vocabulary, view.log_p, view.log_q, {}
  if log_q is not None:
    seen['entropy'] = -columns.total(jnp.where(log_q > -jnp.inf, jnp.exp(log_q) * log_q, 0.0))
    same = columns.total((columns.best(log_p) & columns.best(log_q)).astype(log_p.dtype))
    seen['agreement'] = (same > 0).astype(log_p.dtype)
    seen['forward_kl'] = columns.total(ForwardKL().entry(log_p, log_q))
    seen['reverse_kl'] = columns.total(ReverseKL().entry(log_p, log_q))
  if view.target.top_k is not None:
    ids, logp = view.target.top_k
    valid = (ids >= 0) & (ids < view.size)
    inside = lambda x: jnp.where(valid, x, 0.0).sum(axis=-1)
    own = columns.top_k(log_p, ids.shape[-1]).ids
    seen['mass'] = inside(jnp.exp(logp))
    seen['student_mass'] = inside(jnp.exp(columns.pick(log_p, ids)))
    shared = (ids[:, :, None] == own[:, None, :]).any(axis=-1)
    seen['overlap'] = inside(shared) / jnp.maximum(valid.sum(axis=-1), 1)
  return seen
