"""Floor 1. Interleaves several tasks as one; each keeps its reader, route and verifier."""

import functools
import math
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

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
  """

  def __init__(self, sources: Mapping[str, Source], counts: Mapping[str, int]):
    self._sources, self._counts = sources, counts
    self._turns = _turns(counts)

  @functools.cached_property
  def _length(self) -> int:
    periods = max(math.ceil(len(self._sources[name]) / n) for name, n in self._counts.items())
    return periods * len(self._turns)

  def __len__(self) -> int:
    """An epoch: enough periods for every row of every task. Tasks with fewer rows begin again."""
    return self._length

  def _at(self, number: int) -> _Place:
    period, turn = divmod(int(number), len(self._turns))
    name, earlier = self._turns[turn]
    return _Place(name, (period * self._counts[name] + earlier) % len(self._sources[name]))

  def name(self, number: int) -> str:
    place = self._at(number)
    return self._sources[place.task].name(place.number)

  def id(self, number: int) -> str:
    place = self._at(number)
    return f'{place.task}: {self._sources[place.task].id(place.number)}'

  def __getitem__(self, number: int) -> Raw:
    place = self._at(number)
    return {'task': place.task, 'row': self._sources[place.task][place.number]}

  @property
  def is_drawn(self) -> bool:
    return all(source.is_drawn for source in self._sources.values())


def mixture(
  tasks: Mapping[str, Task],
  *,
  weights: Mapping[str, float | int] | None = None,
  name: str = 'mixture',
) -> Task:
  """Several tasks as one. Each problem gets the name of its task as its route, and its task's verifier.

  Args:
    tasks: by name; the names are the routes that `Routed` judges know.
    weights: how many rows of each, relative to the others; None takes as many of each.
    name: as it appears in metrics.
  """
  _check(tasks, weights, name)
  counts = _counts({task: 1.0 if weights is None else weights[task] for task in tasks}, name)
  return Task(
    name=name,
    source=Interleaved({task: inner.source for task, inner in tasks.items()}, counts),
    read=_reader(tasks),
    verify=_verifier(tasks, name) if any(task.verify for task in tasks.values()) else None,
    on_bad_row=next(iter(tasks.values())).on_bad_row,
  )


def _check(tasks: Mapping[str, Task], weights: Mapping[str, float | int] | None, name: str) -> None:
  if not tasks:
    raise ValueError(f'{name}: a mixture needs at least one task.')
  if weights is not None and weights.keys() != tasks.keys():
    raise ValueError(
      f'{name}: the tasks are {sorted(tasks)}, the weights are those of {sorted(weights)}. Give each task a weight.'
    )
  for weight in (weights or {}).values():
    if not 0 < weight < math.inf:
      raise ValueError(
        f'{name}: weights must be above 0 and finite, got {dict(weights or {})}. Leave out what is not wanted.'
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
