"""Floor 0. Numbers that move: with the step of a stage, or with what a run measures.

A `Ramp` and a `Piecewise` are functions of the step alone, so a resumed run needs nothing. `Stepped` and `Latest` look
at the metrics; what they remember of them is a few numbers that JSON holds, and the checkpoint keeps them.
"""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any, Literal, TypeVar

import jax
import jax.numpy as jnp
import numpy as np

from opd_jax.static import static


@static
class Ramp:
  """Moves from `begin` to `end` over `steps` steps, after `delay` steps at `begin`, and stays.

  Args:
    begin, end: the two values.
    steps: how long it takes.
    delay: steps before it sets out.
    shape: along a straight line, or along half a cosine (slow at both ends).

  >>> [Ramp(begin=6, end=0, steps=4).at(step) for step in (0, 1, 2, 4, 9)]
  [6.0, 4.5, 3.0, 0.0, 0.0]
  """

  begin: float | int
  end: float | int
  steps: int
  delay: int = 0
  shape: Literal['linear', 'cosine'] = 'linear'

  def __post_init__(self):
    if not isinstance(self.steps, int) or self.steps < 1 or self.delay < 0:
      raise ValueError(f'Ramp: steps must be at least 1 and delay not negative; got {self}.')
    if self.shape not in ('linear', 'cosine'):
      raise ValueError(f"Ramp: shape is 'linear' or 'cosine', got {self.shape!r}.")

  def at(self, step: Any) -> Any:
    """The value at a step: a float, or a traced number where the step is one."""
    np_like = jnp if isinstance(step, jax.Array) else np
    way = np_like.clip((step - self.delay) / self.steps, 0.0, 1.0)
    if self.shape == 'cosine':
      way = 0.5 - 0.5 * np_like.cos(math.pi * way)
    value = self.begin + way * (self.end - self.begin)
    return value if isinstance(step, jax.Array) else float(value)


@static
class Piecewise:
  """Straight lines between (step, value) points; constant before the first and behind the last.

  >>> [Piecewise(points=((0, 1.0), (10, 0.0), (20, 0.5))).at(step) for step in (0, 5, 10, 15, 99)]
  [1.0, 0.5, 0.0, 0.25, 0.5]
  """

  points: Sequence[tuple[int, float | int]]

  def __post_init__(self):
    object.__setattr__(
      self, 'points', tuple((int(step), float(value)) for step, value in self.points)
    )
    steps = [step for step, _ in self.points]
    if not steps or steps != sorted(set(steps)):
      raise ValueError(f'Piecewise: points need steps that rise, got {self.points}.')

  def at(self, step: Any) -> Any:
    """The value at a step: a float, or a traced number where the step is one."""
    steps, values = zip(*self.points, strict=True)
    if isinstance(step, jax.Array):
      return jnp.interp(step, jnp.asarray(steps, float), jnp.asarray(values))
    return float(np.interp(step, steps, values))


def _of_the_run(name: str, metric: str) -> None:
  if metric.startswith('time/'):
    raise ValueError(
      f'{name}: {metric} differs from machine to machine, and so would the run. Take a metric of the text or of the '
      'loss.'
    )


@static
class Stepped:
  """Goes from `begin` towards `end`, `by` at a time, whenever a metric of the run asks for it.

  Exactly one of `above`, `below` and `rises` is given.

  Args:
    name: of the number in the metrics: `moving/<name>`. Numbers of one name move together.
    begin, end: where it sets out, and where it stays.
    by: how far it goes at a time, without a sign.
    metric: what it looks at, as metrics.jsonl names it: 'truncated', 'eval/sums/avg@1'.
    above: it goes on when the smoothed metric is above this.
    below: it goes on when the smoothed metric is below this.
    rises: it goes on when the smoothed metric is higher than at the reading before.
    smooth: how much of a reading enters the smoothed metric; 1 does not smooth.
    wait: readings that it lets pass after each move.
  """

  name: str
  begin: float | int
  end: float | int
  by: float | int
  metric: str
  above: float | None = None
  below: float | None = None
  rises: bool = False
  smooth: float = 1.0
  wait: int = 0

  def __post_init__(self):
    conditions = (self.above is not None) + (self.below is not None) + self.rises
    if conditions != 1:
      raise ValueError(
        f'Stepped {self.name}: give exactly one of above, below and rises; got {self}.'
      )
    if not (self.by > 0 and 0 < self.smooth <= 1 and self.wait >= 0):
      raise ValueError(
        f'Stepped {self.name}: by must be above 0, smooth in (0, 1] and wait not negative; got {self}.'
      )
    _of_the_run(self.name, self.metric)

  def after(self, memory: Mapping[str, float], reading: float) -> dict[str, float]:
    """What it remembers after a reading: `value`, the smoothed `metric`, and how many readings to let pass."""
    value, wait = float(memory.get('value', self.begin)), memory.get('wait', 0)
    before = memory.get('metric', reading)
    metric = before + self.smooth * (reading - before)
    if wait:
      return {'value': value, 'metric': metric, 'wait': wait - 1}
    if not self._asks(before, metric):
      return {'value': value, 'metric': metric, 'wait': 0}
    way = math.copysign(min(self.by, abs(self.end - value)), self.end - value)
    return {'value': value + way, 'metric': metric, 'wait': self.wait}

  def _asks(self, before: float, metric: float) -> bool:
    if self.rises:
      return metric > before
    return metric > self.above if self.above is not None else metric < (self.below or 0.0)


@static
class Latest:
  """Stands where a metric stood at its last reading; at `full` until there is one, and in every so many steps.

  Args:
    name: of the number in the metrics: `moving/<name>`.
    metric: what it follows.
    full: its value in the steps in which the metric is measured, and the most that it ever is.
    least: the least that it ever is.
    every: the first of so many steps is such a step.
  """

  name: str
  metric: str
  full: float | int
  least: float | int
  every: int

  def __post_init__(self):
    if self.every < 1 or self.least > self.full:
      raise ValueError(
        f'Latest {self.name}: every must be at least 1 and least at most full; got {self}.'
      )
    _of_the_run(self.name, self.metric)

  @property
  def begin(self) -> float | int:
    return self.full

  @property
  def end(self) -> float | int:
    return self.least

  def after(self, memory: Mapping[str, float], reading: float) -> dict[str, float]:
    """What it remembers: the reading, within its bounds."""
    return {'value': float(min(max(reading, self.least), self.full))}


Watching = Stepped | Latest  # numbers that look at metrics
Moving = Ramp | Piecewise | Watching
Number = float | int | Moving
NO_DECISIONS: Mapping[str, float] = MappingProxyType({})
T = TypeVar('T')


def at(number: Number, step: Any, decisions: Mapping[str, float] = NO_DECISIONS) -> Any:
  """A number at a step, whether it moves or not.

  Args:
    number: it.
    step: of the stage.
    decisions: where numbers stand that look at metrics, by name; one that is not there has not moved yet.
  """
  if not isinstance(number, Watching):
    return number.at(step) if isinstance(number, Moving) else number
  if isinstance(step, jax.Array):
    raise ValueError(
      f'{number.name}: a weight inside a method follows the step only; give it a Ramp or a Piecewise. Who writes, the '
      'rules of decoding and the refreshes of judges may look at metrics.'
    )
  if isinstance(number, Latest) and step % number.every == 0:
    return number.full
  return decisions.get(number.name, number.begin)


def extremes(number: Number) -> tuple[float, float]:
  """The smallest and the largest value that a number ever has."""
  if isinstance(number, Piecewise):
    values = [value for _, value in number.points]
  else:
    values = [number.begin, number.end] if isinstance(number, Moving) else [number]
  return float(min(values)), float(max(values))


def turns(number: Number) -> tuple[int, ...]:
  """The steps between which a number moves one way or not at all, with the first of all.

  >>> turns(Ramp(begin=0, end=1, steps=4, delay=2)), turns(0.5)
  ((0, 2, 6), (0,))
  """
  if isinstance(number, Ramp):
    return 0, number.delay, number.delay + number.steps
  return (0, *(step for step, _ in number.points)) if isinstance(number, Piecewise) else (0,)


def least_at(number: Number, step: int) -> float:
  """The least that a number may be at a step: of one that looks at metrics, the least that it ever is."""
  return extremes(number)[0] if isinstance(number, Watching) else float(at(number, step))


def scaled(number: Number, times: float, *, plus: float = 0.0) -> Any:
  """times · number + plus, wherever it moves.

  >>> scaled(Ramp(begin=0.25, end=1.0, steps=3), -1.0, plus=1.0).at(0), scaled(3, -1.0)
  (0.75, -3.0)
  """
  if isinstance(number, Watching):
    raise ValueError(f'{number.name}: a number that looks at metrics cannot be scaled.')
  if isinstance(number, Piecewise):
    return Piecewise(points=tuple((step, times * x + plus) for step, x in number.points))
  if isinstance(number, Ramp):
    begin, end = (times * x + plus for x in (number.begin, number.end))
    return dataclasses.replace(number, begin=begin, end=end)
  return times * number + plus


def settled(record: T, step: int, decisions: Mapping[str, float] = NO_DECISIONS) -> T:
  """A record with the numbers that it has at a step in the place of those that move."""
  fields: Any = record
  moving = {each.name: getattr(record, each.name) for each in dataclasses.fields(fields)}
  values = {
    name: at(number, step, decisions)
    for name, number in moving.items()
    if isinstance(number, Moving)
  }
  return dataclasses.replace(fields, **values) if values else record
