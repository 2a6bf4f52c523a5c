"""Floor 3. Gates: they look at the metrics of a run and say when a judge that is the student is renewed.

What a gate remembers is numbers that JSON holds; a checkpoint keeps them.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

from opd_jax.static import static

Memory = Mapping[str, Any]
WINDOWS = 'reward', 'length', 'length_max'  # metrics of a training step that `RewardRose` keeps


class Decision(NamedTuple):
  """What a gate makes of a row of metrics."""

  memory: dict[str, Any]
  opens: bool


def _last(values: list[float], value: float, count: int) -> list[float]:
  return [*values, value][-count:]


@static
class RewardRose:
  """Opens when the reward has risen since the last renewal, that was long ago, and no response is far too long.

      t mod every = 0  and  t - t' ≥ apart  and  r̄ > r̄' + margin  and  max n / mean n ≤ tail

  r̄ and n are the rewards and lengths of the last `window` steps; t' and r̄' are those of the last renewal, at first
  zero and the mean reward of the first `window` steps. CGTR, arXiv:2606.03532, which leaves the first r̄' open. Its main
  text prints a bare maximum of the lengths; its appendix and its ablation take the ratio, as here. A step in which
  nothing was verified counts as a step, and is not in the window.

  Args:
    every: steps between two looks.
    apart: least steps between two renewals.
    margin: how much the reward must have risen; None does not look at it.
    tail: the longest response of the window over the mean length; None does not look at it.
    window: steps of the means.
  """

  every: int = 5
  apart: int = 30
  margin: float | None = 0.05
  tail: float | None = 3.2
  window: int = 5

  def __post_init__(self):
    if self.every < 1 or self.window < 1 or self.apart < 0:
      raise ValueError(
        f'RewardRose: every and window must be at least 1 and apart not negative, got {self}.'
      )
    if self.margin is not None and not 0 <= self.margin < float('inf'):
      raise ValueError(f'RewardRose: margin must be finite and not negative, got {self.margin}.')
    if self.tail is not None and not self.tail >= 1:
      raise ValueError(
        f'RewardRose: the longest response is never shorter than the mean, so tail must be at least 1, got {self.tail}.'
      )

  @property
  def metrics(self) -> tuple[str, ...]:
    """What it must be able to read."""
    return (*WINDOWS[: self.margin is not None], *WINDOWS[1:])

  def after(self, memory: Memory, row: Mapping[str, Any]) -> Decision:
    """What it remembers after a row, and whether it opens; rows of evaluations say nothing to it."""
    if 'loss' not in row:
      return Decision(dict(memory), opens=False)
    known = {'steps': 0, 'at': 0, **{name: [] for name in WINDOWS}, **memory}
    known['steps'] += 1
    if 'reward' in row or self.margin is None:
      for name in WINDOWS:
        known[name] = _last(known[name], float(row.get(name, 0.0)), self.window)
    full = len(known['length']) == self.window
    if full and 'reference' not in known:
      known['reference'] = self._mean(known['reward'])
    opens = full and known['steps'] % self.every == 0 and self._opens(known)
    if opens:
      known |= {'at': known['steps'], 'reference': self._mean(known['reward'])}
    return Decision(known, opens)

  def _mean(self, values: list[float]) -> float:
    return sum(values) / len(values)

  def _opens(self, known: Memory) -> bool:
    apart = known['steps'] - known['at'] >= self.apart
    rose = self.margin is None or self._mean(known['reward']) > known['reference'] + self.margin
    longest, mean = max(known['length_max']), self._mean(known['length'])
    return apart and rose and (self.tail is None or longest <= self.tail * mean)


@static
class Improved:
  """Opens when a metric of an evaluation is higher than it was at the last renewal, or at the first reading.

  Args:
    metric: as metrics.jsonl names it: 'eval/sums/avg@1'.
    margin: how much higher it must be.
    apart: least readings between two renewals.
  """

  metric: str
  margin: float = 0.0
  apart: int = 1

  def __post_init__(self):
    if not self.metric.startswith('eval/'):
      raise ValueError(
        f"Improved: it looks at a metric of an evaluation, e.g. 'eval/sums/avg@1', got {self.metric!r}."
      )
    if not 0 <= self.margin < float('inf') or self.apart < 1:
      raise ValueError(
        f'Improved: margin must be finite and not negative, and apart at least 1, got {self}.'
      )

  @property
  def metrics(self) -> tuple[str, ...]:
    """What it must be able to read."""
    return (self.metric,)

  def after(self, memory: Memory, row: Mapping[str, Any]) -> Decision:
    """What it remembers after a row, and whether it opens; a row without its metric says nothing to it."""
    if self.metric not in row:
      return Decision(dict(memory), opens=False)
    value = float(row[self.metric])
    reference, since = memory.get('reference', value), memory.get('since', 0) + 1
    if value > reference + self.margin and since >= self.apart:
      return Decision({'reference': value, 'since': 0}, opens=True)
    return Decision({'reference': reference, 'since': since}, opens=False)


Gate = RewardRose | Improved
