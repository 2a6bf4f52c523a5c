"""Floor 3. What a method or a stage asks of its writers: which rows are whose, and how long they may become."""

import dataclasses
from typing import Literal

import numpy as np
from jaxtyping import Bool

from opd_jax import ramps
from opd_jax.ramps import Number


@dataclasses.dataclass(frozen=True, kw_only=True)
class RolloutMix:
  """Fractions of the rows by writer. The student, as it is now, writes what the others leave.

  Args:
    teacher: written by the teacher, which reads its own prompt.
    data: taken from a data set.
    prefix: tokens that the teacher writes in front of what the student writes; they are read, and do not count.
    prefix_counts: they count too, for a method that teaches them; who wrote a token is in `Rollout.writer`.
    stop_after: the student is stopped after so many tokens, however much the budget allows.
    proposals: tokens that the student proposes before the teacher reads them, where the teacher writes whole rows; the
      text has the same law (inference/speculative.py). 0: the teacher writes alone.
    beside: 'teacher' lets decoding rules read the teacher's logits while the student writes (`guided.Blend`).
  """

  teacher: Number = 0.0
  data: Number = 0.0
  prefix: Number | None = None
  prefix_counts: bool = False
  stop_after: Number | None = None
  proposals: int = 0
  beside: Literal['teacher'] | None = None

  def __post_init__(self):
    teacher, data = ramps.extremes(self.teacher), ramps.extremes(self.data)
    if min(*teacher, *data) < 0 or teacher[1] + data[1] > 1 + 1e-6:
      raise ValueError(
        'RolloutMix: fractions must not be negative, and those of teacher and data must never sum to more than 1; '
        f'got teacher {self.teacher} and data {self.data}.'
      )
    if not isinstance(self.proposals, int) or self.proposals < 0:
      raise ValueError(
        f'RolloutMix: proposals is a whole number that is not negative, got {self.proposals!r}.'
      )
    if self.proposals and not teacher[1]:
      raise ValueError(
        f'RolloutMix: {self.proposals} proposals are for rows that the teacher writes, and it writes none. Give it '
        'some, e.g. RolloutMix(teacher=1.0), or leave proposals at 0.'
      )
    if self.beside not in (None, 'teacher'):
      raise ValueError(f"RolloutMix: beside is None or 'teacher', got {self.beside!r}.")

  @property
  def student(self) -> float:
    """The fraction that the student writes, of a settled mix."""
    return 1.0 - float(ramps.at(self.teacher, 0)) - float(ramps.at(self.data, 0))

  @property
  def needs_teacher(self) -> bool:
    """Whether the teacher has to be able to write."""
    writes = ramps.extremes(self.teacher)[1] > 0
    return writes or self.prefix is not None or self.beside is not None

  @property
  def needs_student(self) -> bool:
    """Whether the student ever writes."""
    return ramps.extremes(self.teacher)[0] + ramps.extremes(self.data)[0] < 1 - 1e-6

  @property
  def needs_data(self) -> bool:
    """Whether rows are ever taken from a data set."""
    return ramps.extremes(self.data)[1] > 0

  def deal(self, rows: int) -> Bool[np.ndarray, '3 B']:
    """Which rows the student, the teacher and the data set have, of a settled mix: spread evenly."""
    teacher_part, data_part = float(ramps.at(self.teacher, 0)), float(ramps.at(self.data, 0))
    spread = lambda count, part: np.diff(np.floor(np.arange(count + 1) * part + 1e-9)) > 0
    student, teacher = spread(rows, self.student), np.zeros(rows, bool)
    rest = ~student
    share = teacher_part / max(teacher_part + data_part, 1e-9)
    teacher[rest] = spread(int(rest.sum()), share)
    return np.stack([student, teacher, rest & ~teacher])


def student(
  *,
  prefix: Number | None = None,
  stop_after: Number | None = None,
  beside: Literal['teacher'] | None = None,
) -> RolloutMix:
  """Every row by the student: on-policy."""
  return RolloutMix(prefix=prefix, stop_after=stop_after, beside=beside)


def teacher(*, proposals: int = 0) -> RolloutMix:
  """Every row by the teacher, perhaps from proposals of the student."""
  return RolloutMix(teacher=1.0, proposals=proposals)


def dataset() -> RolloutMix:
  """Every row from a data set."""
  return RolloutMix(data=1.0)


def mixture(*, student: float) -> RolloutMix:
  """A fraction of the rows by the student, the rest from a data set (GKD's λ)."""
  return RolloutMix(data=1.0 - student)


def whole(number: Number) -> int:
  """A number of tokens of a settled mix."""
  return round(ramps.at(number, 0))
