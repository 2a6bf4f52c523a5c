"""Floor 2. The host side of prefill: a prompt is read once, for all of its samples, and its rows go into free slots."""

import dataclasses
from collections.abc import Sequence

import numpy as np
from jaxtyping import PRNGKeyArray

from opd_jax.inference import decode_programs
from opd_jax.inference.buckets import bucket
from opd_jax.inference.decode_programs import Admission, Prefilled, Slots, Specs
from opd_jax.types import Params


def width_of(length: int, chunk: int, table: int) -> int:
  """Columns in which a prompt is read: a bucket, or pieces of a chunk."""
  if length <= chunk:
    return bucket(length, minimum=16, maximum=min(chunk, table))
  return min(-(-length // chunk) * chunk, table)


@dataclasses.dataclass(kw_only=True)
class PromptReader:
  """Reads prompts and places rows.

  Args:
    params, specs: of the models that read.
    prompts: the tokens of every row.
    rows: their numbers in the run, which fix their random streams.
    budgets: most tokens of each row.
    key: of the run.
    chunk: columns of one pass.
    table: size of the models' position table.
    pieces: devices that share the rows of a batch.
  """

  params: Sequence[Params]
  specs: Specs
  prompts: list[tuple[int, ...]]
  rows: np.ndarray
  budgets: np.ndarray
  key: PRNGKeyArray
  chunk: int
  table: int
  pieces: int
  read: dict[tuple[int, ...], tuple[Prefilled, int]] = dataclasses.field(default_factory=dict)

  def admit(self, slots: Slots, arriving: np.ndarray, held: np.ndarray) -> Slots:
    """Puts every arriving row into its slot. A prompt is read once, for all of its samples."""
    slot_of = {row: slot for slot, row in enumerate(held.tolist())}
    needed = dict.fromkeys(self.prompts[row] for row in arriving.tolist())
    if unread := [prompt for prompt in needed if prompt not in self.read]:
      self.read = {prompt: self.read[prompt] for prompt in needed if prompt in self.read}
      for width in sorted(
        {self.width(len(prompt)) for prompt in unread}
      ):  # a long prompt does not widen the others
        self.read |= self._prefill(
          [prompt for prompt in unread if self.width(len(prompt)) == width]
        )
    batches: dict[int, list[int]] = {}
    for row in arriving.tolist():
      batches.setdefault(id(self.read[self.prompts[row]][0]), []).append(row)
    for rows in batches.values():
      slots = self._place(slots, rows, slot_of)
    return slots

  def width(self, length: int) -> int:
    """Columns in which a prompt is read."""
    return width_of(length, self.chunk, self.table)

  def _prefill(
    self, prompts: list[tuple[int, ...]]
  ) -> dict[tuple[int, ...], tuple[Prefilled, int]]:
    rows = bucket(len(prompts), minimum=1, maximum=1 << 30)
    rows = -(-rows // self.pieces) * self.pieces
    width = max(self.width(len(prompt)) for prompt in prompts)
    tokens, lengths = np.zeros((rows, width), np.int32), np.ones(rows, np.int32)
    for row, prompt in enumerate(prompts):
      tokens[row, : len(prompt)], lengths[row] = prompt, len(prompt)
    chunk = self.chunk if width % self.chunk == 0 else width
    prefilled = decode_programs.prefill(self.params, tokens, lengths, specs=self.specs, chunk=chunk)
    return {prompt: (prefilled, row) for row, prompt in enumerate(prompts)}

  def _place(self, slots: Slots, rows: list[int], slot_of: dict[int, int]) -> Slots:
    """Puts rows whose prompts were read in one batch into their slots."""
    prefilled = self.read[self.prompts[rows[0]]][0]
    size = slots.ended.shape[
      0
    ]  # filled up to one entry per slot: one program for any number of rows
    fill = lambda values: np.resize(np.asarray(values, np.int32), size)
    admission = Admission(
      slot=fill([slot_of[row] for row in rows]),
      source=fill([self.read[self.prompts[row]][1] for row in rows]),
      row=fill(self.rows[rows]),
      budget=fill(self.budgets[rows]),
      count=np.asarray(len(rows), np.int32),
    )
    return decode_programs.admit(slots, prefilled, admission, self.key, specs=self.specs)
