"""Floor 2. The sampler: prompts in, a `Rollout` out. A fixed number of slots, refilled as rows end.

This is the host side: it moves row numbers, chooses buckets and collects what `decode_programs.py` records. A row's
random stream depends on the run's key, the row's number and the position, and no computation mixes rows, so its text
is the same for any number of slots and any order.
"""

import dataclasses
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import PRNGKeyArray

from opd_jax.inference import decode_programs
from opd_jax.inference.buckets import most_columns, patience, rooms, sizes_of
from opd_jax.inference.decode_programs import Record, Recording, Slots
from opd_jax.inference.decoding import Decoding
from opd_jax.inference.prompt_reader import PromptReader
from opd_jax.models import transformer
from opd_jax.models.config import ModelConfig
from opd_jax.processes import by_owners
from opd_jax.sharding import Layout
from opd_jax.types import STUDENT, Params, Prompts, Rollout, TopK


class Model(NamedTuple):
  """A model to sample from; `unrolled` converts it for decoding."""

  config: ModelConfig
  layout: Layout
  params: Params


@dataclasses.dataclass(frozen=True, kw_only=True)
class Sampling:
  """How a batch is sampled. Only `decoding` and `budget` change the responses.

  Args:
    decoding: rules, stop tokens, repetition stop.
    budget: maximum tokens of a response, R.
    slots: rows in flight; the memory of the cache is proportional to it.
    segment: maximum decode steps before the device returns to the host.
    chunk: columns of one prefill pass.
    recording: what is recorded besides log-probabilities.
  """

  decoding: Decoding = Decoding()
  budget: int = 256
  slots: int = 64
  segment: int = 32
  chunk: int = 512
  recording: Recording = dataclasses.field(default_factory=Recording)

  def __post_init__(self):
    for name, minimum in (('budget', 0), ('slots', 1), ('segment', 1), ('chunk', 1)):
      if getattr(self, name) < minimum:
        raise ValueError(f'Sampling: {name} must be at least {minimum}, got {getattr(self, name)}.')


class Progress(NamedTuple):
  """What `Run.stream` yields after every segment."""

  finished: tuple[int, ...]  # rows that ended in this segment
  tokens: int  # written since the beginning
  steps: int  # decode steps since the beginning
  slot_steps: int  # the same, times the slots of each step: tokens / slot_steps is the occupancy


def unrolled(model: Model) -> Model:
  """Converts a model for decoding; see `transformer.unrolled`."""
  config, params = transformer.unrolled(*model)
  return Model(config, model.layout, params)


def generate(
  model: Model,
  prompts: Prompts,
  key: PRNGKeyArray,
  *,
  sampling: Sampling,
  others: Sequence[Model] = (),
  budgets: Sequence[int] | None = None,
  version: int = 0,
  numbers: tuple[np.float32, ...] | None = None,
) -> Rollout:
  """One response for every row of `prompts`.

  Args:
    model: the writer.
    prompts: left-padded rows; neighbours with the same prompt share its prefill.
    key: of the run; together with `prompts.row` it fixes every token.
    sampling: rules, budget and slots.
    others: further models that rules may read at the same positions (`guided.Blend`).
    budgets: most tokens of each row; None gives all of them `sampling.budget`.
    version: stamp of the weights, checked by `responses.check_fresh` before anybody learns from the rollout.
    numbers: the present values of the rules' moving numbers; None takes those of step 0.
  """
  more = {'budgets': budgets, 'version': version, 'numbers': numbers}
  run = Run(model, prompts, key, sampling=sampling, others=others, **more)
  return completed(run, lambda: run.rollout)


def completed(run: 'Run', result: Callable[[], Any]) -> Any:
  """What a run has made when it is over, in every process: those without a device of its models are told."""

  def made() -> Any:
    for _ in run.stream():
      pass
    return result()

  devices = {device for _, layout in run.specs for device in layout.mesh.devices.flat}
  return by_owners(devices, made, result())


class Run:
  """One sampling of one batch. `stream` drives it; `rollout` holds what has been written so far."""

  beyond = 0  # columns behind the last token of a row that a pass may write

  def __init__(
    self,
    model: Model,
    prompts: Prompts,
    key: PRNGKeyArray,
    *,
    sampling: Sampling,
    others: Sequence[Model] = (),
    budgets: Sequence[int] | None = None,
    version: int = 0,
    numbers: tuple[np.float32, ...] | None = None,
  ):
    models = [unrolled(each) for each in (model, *others)]
    self.params = tuple(each.params for each in models)
    self.specs = tuple((each.config, each.layout) for each in models)
    self.key, self.sampling = key, sampling
    self.numbers = sampling.decoding.numbers_at(0) if numbers is None else numbers
    self.rows, self.lengths = np.asarray(prompts.row), np.asarray(prompts.length)
    tokens = np.asarray(prompts.tokens)
    self.prompts = [
      tuple(row[len(row) - n :].tolist()) for row, n in zip(tokens, self.lengths, strict=True)
    ]
    self.table = min(config.max_positions for config, _ in self.specs) - self.beyond
    self.reach = sampling.segment  # most tokens that a row writes in a segment
    self.budgets, self.context_bound = self._checked_budgets(budgets)
    self.rollout = _blank(prompts, sampling, version)
    self.written = np.zeros(len(self.rows), np.int64)
    self.pieces = math.lcm(*(layout.size('batch') for _, layout in self.specs))
    self.reader = PromptReader(
      params=self.params,
      specs=self.specs,
      prompts=self.prompts,
      rows=self.rows,
      budgets=self.budgets,
      key=key,
      chunk=sampling.chunk,
      table=self.table,
      pieces=self.pieces,
    )
    needed = [self.lengths + self.budgets, [*map(self.reader.width, self.lengths.tolist())]]
    self.rooms = rooms(most_columns(int(np.max(needed)) + self.beyond, self.table + self.beyond))
    self.sizes: list[int] = []  # of the slots, while they are halved

  def _checked_budgets(self, budgets: Sequence[int] | None) -> tuple[np.ndarray, np.ndarray]:
    """Tokens each row may write, and whether the position table is what limits it."""
    limit = self.sampling.budget
    budget = np.full(len(self.rows), limit) if budgets is None else np.asarray(budgets)
    if budget.shape != self.rows.shape or (budget < 0).any() or (budget > limit).any():
      raise ValueError(
        f'sampler: budgets must be {len(self.rows)} numbers from 0 to {limit} (the budget), got {budget}.'
      )
    for number, length in zip(self.rows.tolist(), self.lengths.tolist(), strict=True):
      if not 0 < length <= self.table:
        raise ValueError(
          f'sampler: the prompt of row {number} has {length} tokens, it must have 1 to {self.table} (the position '
          'table). Begin an empty one with a token (encode with begin=True); shorten a long one.'
        )
    sizes = [config.vocab_size for config, _ in self.specs]
    if len({*sizes}) > 1:
      raise ValueError(
        f'sampler: models that write together need one vocabulary, these have {sizes} rows.'
      )
    for number, prompt in zip(self.rows.tolist(), self.prompts, strict=True):
      if not (min(prompt) >= 0 and max(prompt) < sizes[0]):
        raise ValueError(
          f'sampler: the prompt of row {number} holds token ids outside 0 to {sizes[0] - 1}.'
        )
    room = self.table - self.lengths
    return np.minimum(budget, room).astype(np.int32), budget > room

  def stream(self) -> Iterator[Progress]:
    """Samples, and yields after every segment the rows that have ended."""
    self.rollout.ended_by[:] = np.where(
      self.context_bound, decode_programs.CONTEXT, decode_programs.BUDGET
    )
    waiting = np.flatnonzero(self.budgets > 0)
    steps = slot_steps = 0
    if len(waiting) < len(self.rows):
      yield Progress(tuple(np.flatnonzero(self.budgets == 0).tolist()), 0, 0, 0)
    self.sizes = sizes_of(min(self.sampling.slots, len(waiting)), pieces=self.pieces)
    held, slots = np.full(self.sizes[0], -1), None  # the row in each slot
    while len(waiting) or (held >= 0).any():
      free = np.flatnonzero(held < 0)[: len(waiting)]
      arriving, waiting = waiting[: len(free)], waiting[len(free) :]
      held[free] = arriving
      slots, held = self._fitted(slots, held, shrink=not len(waiting))
      if len(arriving):
        slots = self.reader.admit(slots, arriving, held)
      if not len(waiting):
        self.reader.read = {}  # no later row needs these prompts
      free_slots = patience(held, self.sizes[-1], hurry=len(waiting) > 0)
      slots, record, count = self._advance(slots, held, free_slots)
      record, count, ended = jax.device_get((record, count, slots.ended))
      self._keep(record, int(count), held)
      has_ended = (held >= 0) & (ended != decode_programs.RUNNING)
      finished, code = held[has_ended], ended[has_ended]
      self.rollout.ended_by[finished] = np.where(
        code == decode_programs.BUDGET, self.rollout.ended_by[finished], code
      )
      held = np.where(has_ended, -1, held)
      steps, slot_steps = steps + int(count), slot_steps + int(count) * len(held)
      yield Progress(tuple(finished.tolist()), int(self.written.sum()), steps, slot_steps)

  def _advance(
    self, slots: Slots, held: np.ndarray, free_slots: np.int32
  ) -> tuple[Slots, Record, jax.Array]:
    """Runs one segment."""
    return decode_programs.decode(
      self.params, slots, free_slots, self.numbers, specs=self.specs,
      decoding=self.sampling.decoding, recording=self.sampling.recording, steps=self.sampling.segment,
    )  # fmt: skip

  def _fitted(
    self, slots: Slots | None, held: np.ndarray, *, shrink: bool
  ) -> tuple[Slots, np.ndarray]:
    """Slots with room for another segment of every row; half as many where half are enough."""
    rows, size = held[held >= 0], len(held)
    if shrink:
      size = min(each for each in self.sizes if each >= len(rows))
    ahead = self.lengths + np.minimum(self.written + self.reach, self.budgets) + self.beyond
    need = max(int(ahead[rows].max()), *map(self.reader.width, self.lengths[rows].tolist()))
    columns = next(each for each in self.rooms if each >= need)
    if slots is None:
      return decode_programs.vacant(
        specs=self.specs, rows=size, columns=columns, window=self.sampling.decoding.window
      ), held
    columns = max(columns, slots.caches[0].columns)
    if size == len(held) and columns == slots.caches[0].columns:
      return slots, held
    kept = np.argsort(held < 0, kind='stable')[:size] if size < len(held) else np.arange(size)
    return decode_programs.reshaped(
      slots, kept.astype(np.int32), specs=self.specs, columns=columns
    ), held[kept]

  def _keep(self, record: decode_programs.Record, count: int, held: np.ndarray) -> None:
    """Copies the tokens of a segment into the rows of the rollout."""
    rollout, written = self.rollout, np.asarray(record.written[:count])
    step, slot = np.nonzero(written)
    row = held[slot]
    at = row, self.written[row] + np.cumsum(written, axis=0)[step, slot] - 1
    sound = np.isfinite(record.behaviour_logp[step, slot]) & ~np.isnan(record.logp[step, slot])
    if not sound.all():
      first = np.argmin(sound)
      raise ValueError(
        f'sampler: no distribution to draw from at position {at[1][first]} of row {self.rows[row[first]]}: the logits '
        'hold NaN, or the rules left no token. Check the weights (NaN after an update?) and the decoding rules.'
      )
    rollout.response[at] = record.token[step, slot]
    rollout.mask[at] = True
    rollout.writer[at] = STUDENT
    rollout.behaviour_logp[at] = record.behaviour_logp[step, slot]
    rollout.logp[at] = record.logp[step, slot]
    if rollout.entropy is not None and record.entropy is not None:
      rollout.entropy[at] = record.entropy[step, slot]
    if rollout.top_k is not None and record.top_k is not None:
      rollout.top_k.ids[at] = record.top_k.ids[step, slot]
      rollout.top_k.logp[at] = record.top_k.logp[step, slot]
    here = held >= 0
    self.written[held[here]] += written.sum(axis=0)[here]


def _blank(prompts: Prompts, sampling: Sampling, version: int) -> Rollout:
  """A rollout in which nothing has been written."""
  rows, width, kept = len(prompts.row), sampling.budget, sampling.recording.top_k
  floats = lambda *more: np.zeros((rows, width, *more), np.float32)
  return Rollout(
    prompt=prompts,
    response=np.zeros((rows, width), np.int32),
    mask=np.zeros((rows, width), bool),
    writer=np.zeros((rows, width), np.int32),
    behaviour_logp=floats(),
    logp=floats(),
    entropy=floats() if sampling.recording.entropy else None,
    top_k=TopK(ids=np.zeros((rows, width, kept), np.int32), logp=floats(kept)) if kept else None,
    ended_by=np.zeros(rows, np.int32),
    version=np.full(rows, version, np.int32),
    reward=np.full(rows, np.nan, np.float32),
  )
