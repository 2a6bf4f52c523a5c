"""Floor 2. The device side of speculative sampling: rounds of proposals, one pass of the target each.

Between rounds the last token of every row has been read by neither model: a round begins by reading it. So both caches
end at the same column, and a proposal is taken back by moving that end.
"""

import functools
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from opd_jax.inference import decode_programs
from opd_jax.inference.decode_programs import RUNNING, Record, Recording, Slots, Specs
from opd_jax.inference.decoding import Decoding, Scores, draw
from opd_jax.models import transformer
from opd_jax.models.cache import Cache
from opd_jax.models.config import SAME_ROUNDING
from opd_jax.types import AnyArray, Params

PROPOSE, JUDGE, REPLACE = range(3)  # what a position draws


class Fate(NamedTuple):
  """What became of the proposals; [steps, B], where a step is a place in a round."""

  accepted: Bool[Array, '*N B']
  judged: Bool[Array, '*N B']
  passed: Bool[Array, '*N B']  # the target read the row; at the first place of a round


@functools.partial(
  jax.jit,
  static_argnames=('specs', 'decoding', 'recording', 'rounds', 'proposals'),
  donate_argnames=('slots',),
  compiler_options=SAME_ROUNDING,
)
def speculate(
  params: Sequence[Params],
  slots: Slots,
  last: Int[AnyArray, ' B'],
  patience: Int[AnyArray, ''],
  numbers: tuple[Float[AnyArray, ''], ...],
  *,
  specs: Specs,
  decoding: Decoding,
  recording: Recording,
  rounds: int,
  proposals: int,
) -> tuple[Slots, Record, Fate, Int[Array, '']]:
  """Writes until `patience` slots have ended, or for `rounds` passes of the target.

  Args:
    last: the last token of every row, which the caches hold and a round reads again.
    numbers: the present values of the numbers in `decoding.moving`.
    specs: the target, and the draft.

  Returns the slots, records of rounds · (proposals + 1) steps, and how many of these took place.
  """
  values = dict(zip(decoding.moving, numbers, strict=True))
  advance = functools.partial(
    _round,
    models=decode_programs.bound(specs, params),
    rule=lambda logits: jax.nn.log_softmax(decoding.distribution([logits], values)),
    decoding=decoding,
    recording=recording,
    proposals=proposals,
  )

  def go_on(carry):
    number, slots, *_ = carry
    return (number < rounds) & ((slots.ended != RUNNING).sum() < patience)

  def body(carry):
    number, slots, last, records = carry
    slots, last, notes = advance(slots, last)
    slots = decode_programs.pinned(slots, specs)
    kept = jax.tree.map(lambda all_, one: all_.at[number].set(one), records, notes)
    return number + 1, slots, last, kept

  last = jnp.asarray(last)
  shapes = jax.eval_shape(lambda slots, last: advance(slots, last)[2], slots, last)
  blank = jax.tree.map(lambda leaf: jnp.zeros((rounds, *leaf.shape), leaf.dtype), shapes)
  number, slots, _, notes = jax.lax.while_loop(go_on, body, (jnp.int32(0), slots, last, blank))
  layout = specs[0][1]  # records are read by every host

  def flat(x: Array) -> Array:
    x = x.reshape(-1, *x.shape[2:])
    return layout.constrain(x, *[None] * x.ndim)

  return slots, *jax.tree.map(flat, notes), number * (proposals + 1)


def _round(
  slots: Slots,
  last: Array,
  *,
  models,
  rule,
  decoding: Decoding,
  recording: Recording,
  proposals: int,
) -> tuple[Slots, Array, tuple[Record, Fate]]:
  """Proposals, a pass of the target over them, and the verdict place by place."""
  target, draft = (_before_last(cache, slots.ended == RUNNING) for cache in slots.caches)
  draft, block, of_draft = _proposed(models[1], draft, slots, last, rule, proposals)
  states, target = models[0].extend(jnp.concatenate([last[:, None], block.T[:, :-1]], 1), target)
  logits = jnp.moveaxis(transformer.logits_of(states, models[0].head()), 1, 0)
  judge = functools.partial(
    _judged, rule=rule, decoding=decoding, recording=recording, proposals=proposals
  )
  light = slots._replace(caches=(), hidden=())  # a loop may copy what it carries
  begin = light, slots.written, last, slots.ended == RUNNING
  places = jnp.arange(proposals + 1)
  (after, _, last, _), notes = jax.lax.scan(judge, begin, (places, logits, block, of_draft))
  written = after.written - slots.written
  moved = [
    longer._replace(end=cache.end + written)
    for longer, cache in zip((target, draft), slots.caches, strict=True)
  ]
  return after._replace(caches=tuple(moved), hidden=slots.hidden), last, notes


def _before_last(cache: Cache, running: Bool[Array, ' B']) -> Cache:
  """The cache without its last token; rows that rest may lose nothing: there may be none."""
  return cache._replace(end=jnp.where(running, cache.end - 1, 0))


def _keys(slots: Slots, written: Int[Array, ' B'], what: int):
  """Keys of a position of every row, for one of its three draws."""
  at = jax.vmap(jax.random.fold_in)(slots.stream, written)
  return jax.vmap(jax.random.fold_in, (0, None))(at, what)


def _proposed(model, cache: Cache, slots: Slots, last: Array, rule, proposals: int):
  """The draft's cache, its tokens and their distributions, [proposals + 1, B] and [proposals + 1, B, V].

  It also reads its last proposal, for the case that all are kept; what it would propose behind that is not used.
  """
  head = model.head()

  def propose(carry, place):
    cache, token = carry
    state, cache = model.extend(token[:, None], cache)
    scores = rule(transformer.logits_of(state[:, 0], head))
    token = draw(scores, _keys(slots, slots.written + place, PROPOSE))
    return (cache, token), (token, scores)

  (cache, _), (block, scores) = jax.lax.scan(propose, (cache, last), jnp.arange(proposals + 1))
  return cache, block, scores


def _judged(carry, inputs, *, rule, decoding: Decoding, recording: Recording, proposals: int):
  """One place of a round: keeps its proposal with probability min(1, q / p), or draws from (q - p)+ instead.

  Behind the last proposal there is none to judge, and the token is drawn from q.
  """
  slots, begin, last, going = carry
  place, logits, proposal, of_draft = inputs
  of_target = rule(logits)
  pick = lambda scores: jnp.take_along_axis(scores, proposal[:, None], axis=-1)[:, 0]
  gap, proposes = pick(of_target) - pick(of_draft), place < proposals
  uniform = jax.vmap(jax.random.uniform)(_keys(slots, begin + place, JUDGE))
  keeps = proposes & (jnp.log(uniform) < gap)
  other = draw(
    jnp.where(proposes, residual(of_target, of_draft), of_target),
    _keys(slots, begin + place, REPLACE),
  )
  token = jnp.where(keeps, proposal, other)

  running = going & (slots.ended == RUNNING)
  note = decode_programs.note(logits, of_target, token, running, recording)
  broken = proposes & jnp.isnan(
    pick(of_draft)
  )  # weights of the draft: it must not pass for a bad one
  note = note._replace(behaviour_logp=jnp.where(broken, jnp.nan, note.behaviour_logp))
  counted = decode_programs.count(slots, token, decoding)
  choose = lambda new, old: jnp.where(running.reshape(-1, *[1] * (new.ndim - 1)), new, old)
  slots = slots._replace(
    written=choose(counted.written, slots.written),
    recent=choose(counted.recent, slots.recent),
    ended=choose(counted.ended, slots.ended),
  )
  fate = Fate(accepted=running & keeps, judged=running & proposes, passed=running & (place == 0))
  return (slots, begin, choose(token, last), running & keeps), (note, fate)


def residual(of_target: Scores, of_draft: Scores) -> Scores:
  """log (q - p)+, not normalised: what q has beyond p. Where rounding leaves nothing of it, log q.

  With q = (.5, .3, .2) and p = (.2, .2, .6) it is log (.3, .1, 0).
  """
  more = jnp.maximum(jnp.exp(of_target) - jnp.exp(of_draft), 0.0)
  return jnp.where((more > 0).any(axis=-1, keepdims=True), jnp.log(more), of_target)
