"""Floor 1. Endless streams of a task's problems.

A stream walks through a task in an order that the seed fixes, anew in every epoch; its whole state is a few numbers
that go into the checkpoint. Every process reads the same rows: problems are small, and a run can then be resumed by
another number of processes.
"""

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple, cast

import grain

from opd_jax.data.problems import Problem, Task
from opd_jax.ramps import NO_DECISIONS

SHOWN = 2  # bad rows that a refusal names


class _Left(NamedTuple):
  """A row that is left out: bad where there is a message, unwanted where there is none. (grain waits at a None.)"""

  message: str | None


@dataclasses.dataclass(frozen=True)
class _Reading:
  """Reads rows as problems, for grain; a row that cannot be read, or does not fit, becomes a `_Left` that says why."""

  task: Task
  fits: Callable[[Problem], object] = lambda problem: None

  def __len__(self) -> int:
    return len(self.task.source)

  def __getitem__(self, number: Any) -> Problem | _Left:
    name = self.task.source.name(number)
    try:
      problem = self.task.read(self.task.source[number])
      if problem is not None:
        self.fits(problem)
    except (ValueError, KeyError, TypeError, IndexError, UnicodeDecodeError) as error:
      what = f'it has no {error}' if isinstance(error, KeyError) else str(error)
      return _Left(f'{name}: {what}')
    if problem is None:
      return _Left(None)
    return problem._replace(name=name, id=self.task.source.id(number))


class Stream(Iterator[Problem]):
  """The problems of a task without end, shuffled anew in every epoch.

  Args:
    task: whose problems.
    seed: of their order.
    fits: raises ValueError for a problem that cannot be used; that makes its row a bad one.
  """

  def __init__(
    self, task: Task, *, seed: int = 0, fits: Callable[[Problem], object] = lambda problem: None
  ):
    self.task, self.skipped = task, 0
    order = grain.MapDataset.source(cast(Any, _Reading(task, fits))).seed(seed).shuffle().repeat()
    self._iterator = iter(
      order.to_iter_dataset(grain.ReadOptions(num_threads=1, prefetch_buffer_size=64))
    )

  def __next__(self) -> Problem:
    last = 'all are filtered out'
    for _ in range(
      2 * len(self.task.source) + 1
    ):  # two epochs without a usable row: the task has none
      row = next(self._iterator)
      if isinstance(row, Problem):
        return row
      if row.message is not None:
        if self.task.on_bad_row == 'stop':
          raise ValueError(_bad(self.task, row.message))
        self.skipped, last = self.skipped + 1, f'the last bad one is {row.message}'
    raise ValueError(_none(self.task, last))

  def take(
    self, count: int, *, step: int = 0, decisions: Mapping[str, float] = NO_DECISIONS
  ) -> list[Problem]:
    """The next problems, whatever the step: only those of a `Curriculum` depend on it."""
    return [next(self) for _ in range(count)]

  def state(self) -> dict[str, Any]:
    return {'grain': self._iterator.get_state(), 'skipped': self.skipped}

  def restore(self, state: Mapping[str, Any]) -> None:
    self._iterator.set_state(state['grain'])
    self.skipped = int(state['skipped'])


class Survey(NamedTuple):
  """What was seen of the rows of a task."""

  rows: int  # that were read
  usable: int  # of them
  bad: int  # of them; others are not wanted
  examples: tuple[str, ...]  # the first of the bad ones, with what is wrong


def survey(
  task: Task,
  *,
  fits: Callable[[Problem], object] = lambda problem: None,
  visit: Callable[[Problem], None] = lambda problem: None,
  wanted: int | None = None,
) -> Survey:
  """Reads the rows of a task in the order of its source, and goes on at bad ones.

  Args:
    task: whose rows.
    fits: see `Stream`.
    visit: is shown every usable problem.
    wanted: usable rows after which it stops; None reads all.
  """
  reading, usable, bad, examples = _Reading(task, fits), 0, 0, []
  for number in range(len(reading)):
    if usable == wanted:
      return Survey(number, usable, bad, tuple(examples))
    row = reading[number]
    if isinstance(row, Problem):
      usable += 1
      visit(row)
    elif row.message is not None:
      bad += 1
      examples += [row.message][: SHOWN - len(examples)]
  return Survey(len(reading), usable, bad, tuple(examples))


def refuse(task: Task, seen: Survey) -> None:
  """Refuses rows that cannot be used, where they may not be skipped, and a task that has no others."""
  if seen.bad and task.on_bad_row == 'stop':
    others = f'; {seen.bad} rows are bad, another is {seen.examples[-1]}' * (seen.bad > 1)
    raise ValueError(_bad(task, seen.examples[0] + others))
  if not seen.usable:
    last = (
      f'one of {seen.bad} bad ones is {seen.examples[0]}' if seen.bad else 'all are filtered out'
    )
    raise ValueError(_none(task, last))


def first(task: Task, count: int) -> list[Problem]:
  """The first problems of a task in the order of its source, `count` or fewer, at least one."""
  problems: list[Problem] = []
  refuse(task, survey(task, visit=problems.append, wanted=count))
  return problems


def _bad(task: Task, message: str) -> str:
  return f'data: {message} (task {task.name}; on_bad_row="skip" leaves such rows out).'


def _none(task: Task, reason: str) -> str:
  return f'data: no row of the task {task.name} can be used: {reason}.'
