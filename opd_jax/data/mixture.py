"""Floor 1. Interleaves several tasks as one; each keeps its reader, route and verifier."""

import dataclasses
import functools
import math
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from opd_jax import ramps
from opd_jax.data.problems import (
  Problem,
  Reader,
  Task,
  Verdict,
  Verifier,
  is_thread_safe,
  thread_safe,
  verdict_of,
)
from opd_jax.data.sources import Raw, Source
from opd_jax.ramps import Moving, Number

LONGEST = 1000  # rows after which the order of the tasks repeats: weights count to a thousandth


class _Place(NamedTuple):
  """The task of a mixture's row, and the row's number in that task."""

  task: str
  number: int


class Interleaved(Source):
  """The rows of several sources in turn. A row depends on its number alone.

  Args:
    sources: by the name of the task.
    counts: rows of each in a period.
    weights: where the counts come from. Where one moves, `curriculum.Curriculum` deals the rows of a stage, and the
      order here, with every weight at its largest, serves who looks at the first rows.
  """

  def __init__(
    self, sources: Mapping[str, Source], counts: Mapping[str, int], weights: Mapping[str, Number]
  ):
    self.sources, self.weights, self._counts = sources, weights, counts
    self._turns = _turns(counts)

  @property
  def moves(self) -> bool:
    """Whether a weight moves."""
    return any(isinstance(weight, Moving) for weight in self.weights.values())

  @functools.cached_property
  def _length(self) -> int:
    periods = max(math.ceil(len(self.sources[name]) / n) for name, n in self._counts.items())
    return periods * len(self._turns)

  def __len__(self) -> int:
    """An epoch: enough periods for every row of every task. Tasks with fewer rows begin again."""
    return self._length

  def _at(self, number: int) -> _Place:
    period, turn = divmod(int(number), len(self._turns))
    name, earlier = self._turns[turn]
    return _Place(name, (period * self._counts[name] + earlier) % len(self.sources[name]))

  def name(self, number: int) -> str:
    place = self._at(number)
    return self.sources[place.task].name(place.number)

  def id(self, number: int) -> str:
    place = self._at(number)
    return f'{place.task}: {self.sources[place.task].id(place.number)}'

  def __getitem__(self, number: int) -> Raw:
    place = self._at(number)
    return {'task': place.task, 'row': self.sources[place.task][place.number]}

  @property
  def is_drawn(self) -> bool:
    return all(source.is_drawn for source in self.sources.values())


class _Part(Source):
  """The rows of one task of a mixture, as the reader of the mixture wants them."""

  def __init__(self, task: str, source: Source):
    self._task, self._source = task, source

  def __len__(self) -> int:
    return len(self._source)

  def __getitem__(self, number: int) -> Raw:
    return {'task': self._task, 'row': self._source[number]}

  def name(self, number: int) -> str:
    return self._source.name(number)

  def id(self, number: int) -> str:
    return f'{self._task}: {self._source.id(number)}'

  @property
  def is_drawn(self) -> bool:
    return self._source.is_drawn


def only(mixed: Task, task: str) -> Task:
  """A mixture of which one task is left: the same routes, names and verdicts."""
  assert isinstance(mixed.source, Interleaved)
  return dataclasses.replace(mixed, source=_Part(task, mixed.source.sources[task]))


def mixture(
  tasks: Mapping[str, Task],
  *,
  weights: Mapping[str, Number] | None = None,
  name: str = 'mixture',
) -> Task:
  """Several tasks as one. Each problem gets the name of its task as its route, and its task's verifier.

  Args:
    tasks: by name; the names are the routes that `Routed` judges know.
    weights: how many rows of each, relative to the others; None takes as many of each. Where they move, a stage asks
      for other tasks in the course of its steps, and a weight may be 0 for a while.
    name: as it appears in metrics.
  """
  _check(tasks, weights, name)
  weights = dict.fromkeys(tasks, 1) if weights is None else {task: weights[task] for task in tasks}
  counts = _counts({task: ramps.extremes(each)[1] for task, each in weights.items()}, name)
  return Task(
    name=name,
    source=Interleaved({task: inner.source for task, inner in tasks.items()}, counts, weights),
    read=_reader(tasks),
    verify=_verifier(tasks, name) if any(task.verify for task in tasks.values()) else None,
    on_bad_row=next(iter(tasks.values())).on_bad_row,
  )


def _check(tasks: Mapping[str, Task], weights: Mapping[str, Number] | None, name: str) -> None:
  if not tasks:
    raise ValueError(f'{name}: a mixture needs at least one task.')
  if weights is not None and weights.keys() != tasks.keys():
    raise ValueError(
      f'{name}: the tasks are {sorted(tasks)}, the weights are those of {sorted(weights)}. Give each task a weight.'
    )
  for weight in (weights or {}).values():
    least, most = ramps.extremes(weight) if isinstance(weight, Number) else (-1, -1)
    if not (least >= 0 and 0 < most < math.inf):
      raise ValueError(
        f'{name}: weights must be above 0 and finite, got {dict(weights or {})}. Leave out what is not wanted; a '
        'weight that moves may be 0 for a while.'
      )
  # Between these steps weights that are not negative cannot all be 0, unless they are so there.
  turns = sorted({step for weight in (weights or {}).values() for step in ramps.turns(weight)})
  for step in turns:
    if not any(ramps.least_at(weight, step) > 0 for weight in (weights or {}).values()):
      raise ValueError(
        f'{name}: at step {step} of the stage all weights are 0. One of them must stay above 0 at every step.'
      )
  if mixed := [task for task, inner in tasks.items() if isinstance(inner.source, Interleaved)]:
    raise ValueError(f'{name}: {mixed} are mixtures themselves. Name their tasks here instead.')
  rules = {task: inner.on_bad_row for task, inner in tasks.items()}
  if len(set(rules.values())) > 1:
    raise ValueError(f'{name}: its tasks must agree on on_bad_row, got {rules}.')


def _counts(weights: Mapping[str, float | int], name: str) -> dict[str, int]:
  """The smallest whole numbers of rows that come nearest to the weights.

  >>> _counts({'a': 0.7, 'b': 0.3}, ''), _counts({'a': 1, 'b': 1, 'c': 1}, '')
  ({'a': 7, 'b': 3}, {'a': 1, 'b': 1, 'c': 1})
  """
  fractions = np.array(list(weights.values()), float)
  fractions /= fractions.sum()
  best, error = None, math.inf
  for period in range(1, LONGEST + 1):
    counts = np.rint(fractions * period).astype(int)
    distance = float(np.abs(counts / period - fractions).max())
    if counts.sum() == period and counts.min() > 0 and distance < error - 1e-9:
      best, error = counts, distance
  if best is None:
    raise ValueError(
      f'{name}: the weights {dict(weights)} differ too much: the smallest is below a thousandth of their sum.'
    )
  return dict(zip(weights, best.tolist(), strict=True))


def _turns(counts: Mapping[str, int]) -> tuple[tuple[str, int], ...]:
  """One period: the task of each turn and how many turns it had before, spread evenly.

  >>> [name for name, _ in _turns({'a': 2, 'b': 1})]
  ['a', 'b', 'a']
  """
  due = [
    ((k + 0.5) / n, order, name, k)
    for order, (name, n) in enumerate(counts.items())
    for k in range(n)
  ]
  return tuple((name, k) for _, _, name, k in sorted(due))


def _reader(tasks: Mapping[str, Task]) -> Reader:
  def read(row: Raw) -> Problem | None:
    problem = tasks[row['task']].read(row['row'])
    return None if problem is None else problem._replace(route=row['task'])

  return read


def _verifier(tasks: Mapping[str, Task], name: str) -> Verifier:
  def verify(problem: Problem, text: str) -> Verdict:
    if problem.route not in tasks:
      raise ValueError(
        f'{name}: {problem.name or "a problem"} has the route {problem.route!r}; the tasks are {sorted(tasks)}.'
      )
    return verdict_of(tasks[problem.route], problem, text)

  verifiers = [task.verify for task in tasks.values() if task.verify]
  return thread_safe(verify) if all(map(is_thread_safe, verifiers)) else verify
