"""Floor 3. Who writes: the share of a batch's rows that each writer gets."""

import dataclasses


@dataclasses.dataclass(frozen=True, kw_only=True)
class Writers:
  """Shares of the rows; they sum to one.

  Args:
    student: written by the student as it is now.
    teacher: written by the teacher.
    dataset: taken from a data set.
  """

  student: float = 0.0
  teacher: float = 0.0
  dataset: float = 0.0

  def __post_init__(self):
    shares = dataclasses.asdict(self)
    if min(shares.values()) < 0 or abs(sum(shares.values()) - 1) > 1e-6:
      raise ValueError(f'rollouts: shares must not be negative and must sum to 1, got {shares}.')


def student() -> Writers:
  """Every row by the student: on-policy."""
  return Writers(student=1.0)


def teacher() -> Writers:
  """Every row by the teacher."""
  return Writers(teacher=1.0)


def mixture(*, student: float) -> Writers:
  """A share of the rows by the student, the rest from a data set (GKD's λ)."""
  return Writers(student=student, dataset=1.0 - student)
