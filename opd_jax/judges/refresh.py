"""Floor 3. How a judge that is the student follows it: never, always, a little after every step, or when it pays."""

from opd_jax import ramps
from opd_jax.judges.gates import Gate
from opd_jax.ramps import Number
from opd_jax.static import static


@static
class Refresh:
  """φ ← φ + rate · (θ - φ), every so many steps, after the update.

  Args:
    rate: 0 never moves, 1 copies the student.
    every: steps between two refreshes.
    gate: looks at the metrics and says when; then `every` is 1.
  """

  rate: Number
  every: int = 1
  gate: Gate | None = None

  def __post_init__(self):
    lowest, highest = ramps.extremes(self.rate)
    if not 0 <= lowest <= highest <= 1 or self.every < 1:
      raise ValueError(
        f'Refresh: rate must lie in [0, 1] and every must be at least 1, got {self}.'
      )
    if self.gate is not None and (self.every != 1 or highest == 0):
      raise ValueError(
        f'Refresh: its gate says when it moves, so every must be 1 and rate above 0, got {self}.'
      )

  @property
  def is_live(self) -> bool:
    """Whether the judge is the student itself, so that it needs no snapshot."""
    return self.rate == 1 and self.every == 1 and self.gate is None

  def is_due(self, step: int) -> bool:
    """Whether the judge moves after this step of its stage, whatever the metrics say."""
    return self.gate is None and self.rate != 0 and step % self.every == 0


NEVER = Refresh(rate=0.0)


def never() -> Refresh:
  """The student as it was when the stage began."""
  return NEVER


def ema(*, rate: Number) -> Refresh:
  """An exponential moving average; its mean lag is (1 - rate) / rate steps."""
  return Refresh(rate=rate)


def every(steps: int) -> Refresh:
  """A copy of the student, renewed every so many steps."""
  return Refresh(rate=1.0, every=steps)


def gated(*, by: Gate, rate: Number = 1.0) -> Refresh:
  """A copy of the student, renewed when the metrics of the run say so.

  Args:
    by: says when: `gates.RewardRose` (CGTR) or `gates.Improved`.
    rate: of the blend; 1 copies the student.
  """
  return Refresh(rate=rate, gate=by)


def live() -> Refresh:
  """The student as it is."""
  return Refresh(rate=1.0)
