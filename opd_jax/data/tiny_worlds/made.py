"""Floor 1. Problems that are drawn from a seed and their number, in two splits that share none."""

import dataclasses
import hashlib
from typing import Any, Literal

import numpy as np

from opd_jax.data.problems import Problem, question
from opd_jax.data.sources import Raw, Source

Split = Literal['train', 'heldout']
HELD_OUT = 8  # one problem in so many is held out


def _is_held_out(text: str) -> bool:
  return hashlib.sha256(text.encode()).digest()[0] % HELD_OUT == 0


@dataclasses.dataclass(frozen=True)
class Made(Source):
  """Problems drawn from the seed and their number; drawn again until they belong to the split."""

  world: str
  split: Split
  size: int
  seed: int

  def __len__(self) -> int:
    return self.size

  def name(self, number: int) -> str:
    return f'{self.world} ({self.split}), problem {number}'

  def __getitem__(self, number: int) -> Raw:
    for attempt in range(1000):
      raw = self.draw(np.random.RandomState([self.seed, number, attempt]))
      if _is_held_out(raw['problem']) == (self.split == 'heldout'):
        return raw
    raise ValueError(f'no problem of the split {self.split!r} in 1000 draws')

  @property
  def is_drawn(self) -> bool:
    return True

  def draw(self, rng: np.random.RandomState) -> dict[str, Any]:
    raise NotImplementedError


COLUMNS = ('hint', 'document', 'passage')


def read(raw: Raw) -> Problem:
  """A problem with what contexts may show: a hint without the answer, and the short passage of a long document."""
  return Problem(
    messages=question(raw['problem']),
    answer=raw['answer'],
    demonstration=raw['demonstration'],
    extra={column: raw[column] for column in COLUMNS},
  )
