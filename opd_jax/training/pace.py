"""Floor 5. How fast a step is, where its time goes, and how a run stands: one line of 80 columns."""

import time
from collections import deque
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import jax

VERBS = ('sample', 'score', 'weigh', 'update')
RECENT = 20  # steps that the time left is estimated from


class Stopwatch:
  """Seconds of each verb."""

  def __init__(self):
    self.seconds: dict[str, float] = {}

  @contextmanager
  def __call__(self, verb: str) -> Iterator[None]:
    began = time.monotonic()
    with jax.profiler.TraceAnnotation(verb):  # in the trace of `--profile`
      yield
    self.seconds[f'time/{verb}'] = time.monotonic() - began

  @property
  def total(self) -> float:
    return sum(self.seconds.values())


class Pace:
  """How a run stands. A step that compiled, or was followed by an evaluation, does not spoil the time left: the median
  of recent steps counts.

  Args:
    steps: of the whole run.
  """

  def __init__(self, steps: int):
    self.steps, self.accuracy = steps, ''
    self._ends: deque[float] = deque(maxlen=RECENT + 1)

  def evaluated(self, row: Mapping[str, Any]) -> None:
    """Remembers the accuracy of the first evaluation that reports one."""
    named = [value for name, value in row.items() if name.startswith('eval/') and '/avg@' in name]
    if named:
      self.accuracy = f' acc {named[0]:.1%}'

  def line(self, row: Mapping[str, Any], *, now: float) -> str:
    """What matters first; where the time went stands last and may be cut off by a narrow terminal.

    Args:
      row: the metrics of a step.
      now: seconds of a clock.
    """
    self._ends.append(now)
    reward = f' reward {row["reward"]:.2f}' if 'reward' in row else ''
    return (
      f'loss {row["loss"]:.3g}{reward}{self.accuracy} length {row["length"]:.0f} ETA {self._left(row["step"])}'
      f' | {_split(row)}'
    )

  def _left(self, step: int) -> str:
    """Hours, minutes and seconds to the last step."""
    gaps = sorted(b - a for a, b in zip(self._ends, [*self._ends][1:], strict=False))
    if not gaps:
      return '?'
    return clock((self.steps - step) * gaps[len(gaps) // 2])


def clock(seconds: float) -> str:
  """Seconds as a clock shows them.

  >>> clock(3725.4)
  '1:02:05'
  """
  minutes, rest = divmod(round(seconds), 60)
  return (
    f'{minutes // 60}:{minutes % 60:02d}:{rest:02d}' if minutes >= 60 else f'{minutes}:{rest:02d}'
  )


def _split(row: Mapping[str, Any]) -> str:
  """How fast a step was, and where its time went."""
  spent = {verb: row[f'time/{verb}'] for verb in VERBS}
  whole = sum(spent.values())
  split = ', '.join(f'{verb} {seconds / whole:.0%}' for verb, seconds in spent.items())
  compiling = row.get('time/compiling', 0.0)
  waited = f'compiling {compiling:.1f} s, ' if compiling > 0.1 * whole else ''
  return f'{whole:.2f} s a step: {waited}{split}, {row["time/tokens_per_s"]:.0f} tokens/s'
