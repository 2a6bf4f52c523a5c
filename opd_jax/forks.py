"""Floor 3. Forks: rows that leave a response inside it and go on another way. Methods say where, the run writes them.

A fork is a row like any other: its prompt is that of the row it leaves, its response begins with that row's tokens,
which are read and do not count. So it is scored, weighed and trained as rows are.
"""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from opd_jax.types import AnyArray


class Forks(NamedTuple):
  """Where rows fork off. In evidence they are the last F rows of the batch, in this order."""

  row: Int[AnyArray, ' F']  # that it leaves; -1: nowhere, and the fork is an empty row
  at: Int[AnyArray, ' F']  # token of the response that is the first to differ; see `check_places`
  first: Int[AnyArray, ' F']  # its token there, drawn by nobody (log-probs NaN); -1: the writer's
  writer: Int[AnyArray, ' F']  # STUDENT or TEACHER: who goes on from there


@dataclasses.dataclass(frozen=True, kw_only=True)
class Forking:
  """How a method forks.

  Args:
    plan: evidence -> where. One program: the number of forks follows from shapes.
    tokens: the most that a writer writes, `first` not counted; less where the student's position table ends. A fork may
      be longer than the budget of the stage: judges need room for it.
    writers: who may write.
  """

  plan: Callable[[Any], Forks]
  tokens: int
  writers: tuple[str, ...] = ('teacher',)

  def __post_init__(self):
    if self.tokens < 1 or not {'student', 'teacher'}.issuperset(self.writers) or not self.writers:
      raise ValueError(
        f"Forking: tokens must be at least 1 and writers of 'student' and 'teacher'; got {self.tokens}, {self.writers}."
      )


def check_places(
  forks: Forks, lengths: Int[np.ndarray, ' B'], stopped: Bool[np.ndarray, ' B'], *, where: str
) -> None:
  """Refuses forks that leave a response behind its end: a method would count them, and nobody could write them.

  Args:
    forks: on this host.
    lengths: of the responses. A fork may go on behind the last token of one that was cut off.
    stopped: whether a response ended by itself; then its last token is the last that a fork may replace.
    where: what planned them, for the message.
  """
  row, at = np.asarray(forks.row), np.asarray(forks.at)
  known = (row >= -1) & (row < len(lengths))
  inside = np.maximum(np.where(known, row, 0), 0)
  last = lengths[inside] - stopped[inside]
  wrong = ~known | ((row >= 0) & ((at < 0) | (at > last)))
  if not wrong.any():
    return
  number = int(np.argmax(wrong))
  there = f'which has {lengths[inside[number]]} tokens' if known[number] else f'of {len(lengths)}'
  raise ValueError(
    f'{where}: fork {number} of {len(row)} leaves row {row[number]}, {there}, at token {at[number]}. A fork that does '
    'not exist has row -1: plan it where the mask says so, e.g. jnp.where(evidence.mask[row, at], row, -1).'
  )


def without_forks(mask: Bool[AnyArray, 'B R'], forks: Forks | None) -> Bool[AnyArray, 'B R']:
  """The tokens of the rows that the student was asked to write; those of forks do not count."""
  if forks is None:
    return mask
  return mask & (jnp.arange(len(mask)) < len(mask) - len(forks.row))[:, None]


def best_points(
  score: Float[AnyArray, 'B R'], mask: Bool[AnyArray, 'B R'], *, count: int, gap: int = 1
) -> tuple[Int[Array, 'B P'], Bool[Array, 'B P']]:
  """Positions of the highest scores of every row, at least `gap` apart, and whether there are so many."""
  column = jnp.arange(mask.shape[1])

  def take(left, _):
    best = jnp.argmax(jnp.where(left, score, -jnp.inf), axis=1)
    near = jnp.abs(column - best[:, None]) < gap
    return left & ~near, (best, left.any(axis=1))

  _, (at, there) = jax.lax.scan(take, jnp.asarray(mask), None, length=count)
  return at.T, there.T
