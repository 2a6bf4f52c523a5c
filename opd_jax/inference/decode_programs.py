"""Floor 2. The device side of the sampler: slots, and the programs that fill, advance and reshape them.

Every program is jitted once per bucket (rows, columns); the host side in `sampler.py` chooses buckets.
"""

import functools
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key, PRNGKeyArray

from opd_jax.inference.decoding import Decoding, draw
from opd_jax.models import cache as caches
from opd_jax.models import transformer
from opd_jax.models.cache import Cache
from opd_jax.models.config import SAME_ROUNDING, ModelConfig
from opd_jax.sharding import Layout
from opd_jax.types import ENDINGS, AnyArray, Params, TopK

RUNNING, STOP, BUDGET, CONTEXT, REPETITION = range(len(ENDINGS))
# Config and layout of the models that sample together: the writer first, then those that rules may read.
Specs = tuple[tuple[ModelConfig, Layout], ...]


class Slots(NamedTuple):
  """Rows in flight. A slot that is free has ended."""

  caches: tuple[Cache, ...]  # one per model
  hidden: tuple[Float[Array, 'B D'], ...]  # the state that predicts the next token, one per model
  stream: Key[Array, ' B']  # each row's random stream
  written: Int[Array, ' B']
  budget: Int[Array, ' B']
  ended: Int[Array, ' B']  # index into ENDINGS
  recent: Int[Array, 'B W']  # the last tokens, for the repetition stop


class Prefilled(NamedTuple):
  """Prompts that have been read and not yet continued."""

  caches: tuple[Cache, ...]
  hidden: tuple[Float[Array, 'B D'], ...]


class Record(NamedTuple):
  """What a decode step records of each slot; [steps, B] after a segment."""

  token: Int[Array, '*N B']
  written: Bool[Array, '*N B']  # whether the slot was running
  behaviour_logp: Float[Array, '*N B']
  logp: Float[Array, '*N B']
  entropy: Float[Array, '*N B'] | None
  top_k: TopK | None


def bound(specs: Specs, params: Sequence[Params]) -> list[transformer.Transformer]:
  return [transformer.bind(*spec, given) for spec, given in zip(specs, params, strict=True)]


@functools.partial(jax.jit, static_argnames=('specs', 'rows', 'columns', 'window'))
def vacant(*, specs: Specs, rows: int, columns: int, window: int) -> Slots:
  """`rows` free slots with room for `columns` tokens each."""
  zeros = jnp.zeros((rows,), jnp.int32)
  return Slots(
    caches=tuple(caches.empty(*spec, length=columns, start=zeros) for spec in specs),
    hidden=tuple(jnp.zeros((rows, config.width), config.dtype) for config, _ in specs),
    stream=jax.random.split(jax.random.key(0), rows),
    written=zeros,
    budget=zeros,
    ended=jnp.full((rows,), BUDGET, jnp.int32),
    recent=jnp.full((rows, window), -1, jnp.int32),
  )


@functools.partial(jax.jit, static_argnames=('specs', 'chunk'), compiler_options=SAME_ROUNDING)
def prefill(
  params: Sequence[Params],
  tokens: Int[Array, 'B P'],
  length: Int[Array, ' B'],
  *,
  specs: Specs,
  chunk: int,
) -> Prefilled:
  """Reads right-padded prompts. Keys of the padding enter the cache too; the tokens of the response overwrite them.

  Args:
    tokens: P is at most `chunk`, or a multiple of it.
    length: tokens of each prompt.
    chunk: columns of one forward pass; longer prompts are read piece by piece.
  """
  pieces = jnp.stack(jnp.split(tokens, max(tokens.shape[1] // chunk, 1), axis=1))
  rows = jnp.arange(tokens.shape[0])
  read, states = [], []
  for model in bound(specs, params):
    cache = caches.empty(
      model.config, model.layout, length=tokens.shape[1], start=jnp.zeros_like(length)
    )

    def step(carry, piece, model=model):
      cache, state = carry
      at = length - 1 - cache.end  # where in this piece a prompt ends, if it does
      count = jnp.clip(length - cache.end, 0, piece.shape[1])
      hidden, cache = model.extend(piece, cache, count)
      ends_here = (at >= 0) & (at < piece.shape[1])
      last = hidden[rows, jnp.clip(at, 0, piece.shape[1] - 1)]
      return (cache, jnp.where(ends_here[:, None], last, state)), None

    state = jnp.zeros((tokens.shape[0], model.config.width), model.config.dtype)
    (cache, state), _ = jax.lax.scan(step, (cache, state), pieces)
    read.append(cache)
    states.append(state)
  return Prefilled(caches=tuple(read), hidden=tuple(states))


class Admission(NamedTuple):
  """Which prompt goes into which slot; only the first `count` entries count."""

  slot: Int[AnyArray, ' C']
  source: Int[AnyArray, ' C']  # row of the prefilled prompts
  row: Int[AnyArray, ' C']  # number of the trajectory
  budget: Int[AnyArray, ' C']
  count: Int[AnyArray, '']


@functools.partial(jax.jit, static_argnames=('specs',), donate_argnames=('slots',))
def admit(
  slots: Slots, prefilled: Prefilled, admission: Admission, key: PRNGKeyArray, *, specs: Specs
) -> Slots:
  """Copies prefilled prompts into slots, one row at a time: the rest of the cache is not touched."""

  def one(number: Int[Array, ''], slots: Slots) -> Slots:
    slot, source = admission.slot[number], admission.source[number]

    def copy(into: Array, out_of: Array) -> Array:
      row = jax.lax.dynamic_slice_in_dim(out_of, source, 1)
      return jax.lax.dynamic_update_slice(
        into, row.astype(into.dtype), (slot, *[0] * (into.ndim - 1))
      )

    row = admission.row[number]
    return Slots(
      caches=jax.tree.map(copy, slots.caches, prefilled.caches),
      hidden=jax.tree.map(copy, slots.hidden, prefilled.hidden),
      stream=slots.stream.at[slot].set(jax.random.fold_in(key, row)),
      written=slots.written.at[slot].set(0),
      budget=slots.budget.at[slot].set(admission.budget[number]),
      ended=slots.ended.at[slot].set(RUNNING),
      recent=slots.recent.at[slot].set(-1),
    )

  return pinned(jax.lax.fori_loop(0, admission.count, one, slots), specs)


def pinned(slots: Slots, specs: Specs) -> Slots:
  """Pins the sharding of the slots; a changed output sharding recompiles the next call."""
  pairs = list(zip(slots.caches, specs, strict=True))
  layout = specs[0][1]
  fixed = Slots(
    *(jax.tree.map(lambda x: layout.constrain(x, *[None] * x.ndim), part) for part in slots)
  )
  return fixed._replace(caches=tuple(caches.pinned(cache, layout) for cache, (_, layout) in pairs))


class Recording(NamedTuple):
  """What is recorded besides log-probabilities, at no extra forward pass."""

  entropy: bool = False
  top_k: int = 0


@functools.partial(
  jax.jit,
  static_argnames=('specs', 'decoding', 'recording', 'steps'),
  donate_argnames=('slots',),
  compiler_options=SAME_ROUNDING,
)
def decode(
  params: Sequence[Params],
  slots: Slots,
  patience: Int[AnyArray, ''],
  numbers: tuple[Float[AnyArray, ''], ...],
  *,
  specs: Specs,
  decoding: Decoding,
  recording: Recording,
  steps: int,
) -> tuple[Slots, Record, Int[Array, '']]:
  """Writes until `patience` slots have ended, or for `steps` tokens.

  Args:
    numbers: the present values of the numbers in `decoding.moving`.

  Returns the slots, a record of `steps` steps and how many of them took place.
  """
  models, values = bound(specs, params), dict(zip(decoding.moving, numbers, strict=True))

  def advance(slots: Slots) -> tuple[Slots, Record]:
    logits = [transformer.logits_of(h, m.head()) for h, m in zip(slots.hidden, models, strict=True)]
    with jax.named_scope('choose'):
      scores = decoding.distribution(logits, values)
      token = draw(scores, jax.vmap(jax.random.fold_in)(slots.stream, slots.written))
    with jax.named_scope('record'):
      record = note(logits[0], scores, token, slots.ended == RUNNING, recording)
    after = count(slots, token, decoding)
    hidden, moved = [], []
    for model, cache in zip(models, slots.caches, strict=True):
      state, longer = model.extend(token[:, None], cache, jnp.int32(slots.ended == RUNNING))
      hidden.append(state[:, 0])
      moved.append(longer)
    return pinned(after._replace(hidden=tuple(hidden), caches=tuple(moved)), specs), record

  def go_on(carry):
    number, slots, _ = carry
    return (number < steps) & ((slots.ended != RUNNING).sum() < patience)

  def body(carry):
    number, slots, records = carry
    slots, record = advance(slots)
    return (
      number + 1,
      slots,
      jax.tree.map(lambda all_, one: all_.at[number].set(one), records, record),
    )

  shapes = jax.eval_shape(lambda slots: advance(slots)[1], slots)
  blank = jax.tree.map(lambda leaf: jnp.zeros((steps, *leaf.shape), leaf.dtype), shapes)
  number, slots, records = jax.lax.while_loop(go_on, body, (jnp.int32(0), slots, blank))
  layout = specs[0][1]  # records are read by every host
  return slots, jax.tree.map(lambda x: layout.constrain(x, *[None] * x.ndim), records), number


def note(logits, scores, token, running, recording: Recording) -> Record:
  """Log-probabilities of the token under the distribution drawn from and under the model itself."""
  pick = lambda values: jnp.take_along_axis(values, token[:, None], axis=-1)[:, 0]
  total = jax.nn.logsumexp(logits, axis=-1)
  entropy = top_k = None
  if recording.entropy:
    # Σ p (log Z - logit), summed directly; a logit of -inf has no mass and adds nothing.
    gap = total[:, None] - logits
    entropy = jnp.sum(jnp.where(jnp.isinf(gap), 0.0, jnp.exp(-gap) * gap), axis=-1)
  if recording.top_k:
    best, ids = jax.lax.top_k(logits, recording.top_k)
    top_k = TopK(ids=ids, logp=best - total[:, None])
  return Record(
    token=token,
    written=running,
    behaviour_logp=pick(scores) - jax.nn.logsumexp(scores, axis=-1),
    logp=pick(logits) - total,
    entropy=entropy,
    top_k=top_k,
  )


def count(slots: Slots, token: Int[Array, ' B'], decoding: Decoding) -> Slots:
  """Counts one more token in every running slot, and ends the slots for which it is the last."""
  running = slots.ended == RUNNING
  written = slots.written + running
  recent, looping = slots.recent, False
  if decoding.repetition is not None:
    recent = jnp.where(
      running[:, None], jnp.concatenate([recent[:, 1:], token[:, None]], axis=1), recent
    )
    looping = decoding.repetition(recent)
  ended = jnp.where(written >= slots.budget, BUDGET, jnp.where(looping, REPETITION, RUNNING))
  ended = jnp.where(decoding.is_stop(token), STOP, ended)
  return slots._replace(
    written=written, recent=recent, ended=jnp.where(running, ended, slots.ended)
  )


@functools.partial(jax.jit, static_argnames=('specs', 'columns'))
def reshaped(slots: Slots, kept: Int[Array, ' C'], *, specs: Specs, columns: int) -> Slots:
  """Keeps the slots `kept` and resizes their caches to `columns`, when rows grow longer or fewer rows are left."""

  def resize(x: Array) -> Array:
    x = x[kept]
    room = columns - x.shape[2]
    return jnp.pad(x, ((0, 0), (0, 0), (0, room), (0, 0))) if room > 0 else x[:, :, :columns]

  def cache(old: Cache) -> Cache:
    keys, values = tuple(map(resize, old.keys)), tuple(map(resize, old.values))
    start, end, states = jax.tree.map(lambda x: x[kept], (old.start, old.end, old.states))
    return Cache(keys=keys, values=values, start=start, end=end, states=states)

  rest = jax.tree.map(lambda x: x[kept], slots._replace(caches=()))
  return pinned(rest._replace(caches=tuple(map(cache, slots.caches))), specs)
