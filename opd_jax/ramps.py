"""Floor 0. Numbers that move with the step of a stage: a function of the step alone, so a resumed run needs nothing."""

import math
from collections.abc import Sequence
from typing import Any, Literal

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


Moving = Ramp | Piecewise
Number = float | int | Ramp | Piecewise


def at(number: Number, step: Any) -> Any:
  """A number at a step, whether it moves or not."""
  return number.at(step) if isinstance(number, Moving) else number


def whole_at(number: Number, step: int) -> int:
  """The same, to the nearest whole number."""
  return round(at(number, step))
