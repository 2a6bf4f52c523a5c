"""Floor 1. Problems of several tasks in shares that move while a stage goes on.

Each task is a stream of its own, so that a task goes on where it was however rarely it had a turn.
"""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from opd_jax import ramps
from opd_jax.data.mixture import Interleaved, only
from opd_jax.data.problems import Problem, Task
from opd_jax.data.stream import Stream
from opd_jax.ramps import NO_DECISIONS, Watching


class Curriculum:
  """The problems of a mixture whose weights move; see `Stream`.

  Every row adds each task's weight to what the task is owed, and goes to the task that is owed most, which pays one. So
  any stretch of rows holds the tasks in proportion to their weights, to within a row or two of each.

  Args:
    task: of `mixture.mixture`.
    seed: of the order within each task.
    fits: as in `Stream`.
  """

  def __init__(
    self, task: Task, *, seed: int = 0, fits: Callable[[Problem], object] = lambda problem: None
  ):
    assert isinstance(task.source, Interleaved)
    self.task, self._weights = task, task.source.weights
    seeds = np.random.SeedSequence(seed).generate_state(len(self._weights)) >> 1
    self._streams = {
      name: Stream(only(task, name), seed=int(each), fits=fits)
      for name, each in zip(self._weights, seeds, strict=True)
    }
    self._owed = dict.fromkeys(self._weights, 0.0)

  @property
  def skipped(self) -> int:
    return sum(stream.skipped for stream in self._streams.values())

  def take(
    self, count: int, *, step: int = 0, decisions: Mapping[str, float] = NO_DECISIONS
  ) -> list[Problem]:
    """The next problems.

    Args:
      count: how many.
      step: of the stage.
      decisions: where numbers stand that look at metrics.
    """
    weights = {name: float(ramps.at(each, step, decisions)) for name, each in self._weights.items()}
    total = sum(weights.values())
    if not total > 0:
      raise ValueError(
        f'{self.task.name}: at step {step} of the stage all weights are 0, {weights}. One of them must stay above 0.'
      )
    problems = []
    for _ in range(count):
      for name, weight in weights.items():
        self._owed[name] += weight / total
      # A task whose weight has gone to 0 is no longer asked, whatever it is owed.
      first = max((name for name in weights if weights[name] > 0), key=self._owed.__getitem__)
      self._owed[first] -= 1.0
      problems += self._streams[first].take(1)
    return problems

  def state(self) -> dict[str, Any]:
    streams = {name: stream.state() for name, stream in self._streams.items()}
    return {'streams': streams, 'owed': dict(self._owed)}

  def restore(self, state: Mapping[str, Any]) -> None:
    for name, stream in self._streams.items():
      stream.restore(state['streams'][name])
    self._owed = {name: float(state['owed'][name]) for name in self._owed}


def weights_that_watch(task: Task) -> tuple[Watching, ...]:
  """The weights of a mixture that look at metrics."""
  weights = task.source.weights if isinstance(task.source, Interleaved) else {}
  return tuple(each for each in weights.values() if isinstance(each, Watching))


def stream_of(
  task: Task, *, seed: int, fits: Callable[[Problem], object] = lambda problem: None
) -> Stream | Curriculum:
  """The problems of a task without end; see `Stream`."""
  moves = isinstance(task.source, Interleaved) and task.source.moves
  return (Curriculum if moves else Stream)(task, seed=seed, fits=fits)
