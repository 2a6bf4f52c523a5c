"""Floor 3. What a server said of itself, and how two such accounts are compared."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np


@dataclasses.dataclass(frozen=True, kw_only=True)
class Introduction:
  """What a server said of itself: texts and numbers that JSON holds.

  Args:
    model: its name at the server.
    root: the folder or hub id that the server names, or ''.
    system: what the server calls its state (`system_fingerprint`), or ''.
    ours: whether it is `opd serve`.
    positions: of prompt and response together; None: not told.
    most: likeliest tokens that it sends for a position; None: no bound is known.
    probe: log-probabilities of the probe rows.
    tokenizer: how its tokenizer was compared.
    worst, mean: nats by which two scorings of the probe rows differ.
    temperature: what it does with a temperature.
  """

  model: str
  root: str = ''
  system: str = ''
  ours: bool = False
  positions: int | None = None
  most: int | None = None
  probe: tuple[float, ...] = ()
  tokenizer: str = ''
  worst: float = 0.0
  mean: float = 0.0
  temperature: str = ''

  @classmethod
  def of(cls, record: Mapping[str, Any]) -> 'Introduction':
    """The same from JSON, which has no tuples."""
    return cls(**{**record, 'probe': tuple(record['probe'])})

  @property
  def shown(self) -> str:
    """One line for tables and logs."""
    most = 'as many of the likeliest tokens as asked' if self.most is None else f'top {self.most:,}'
    room = '' if self.positions is None else f', {self.positions:,} positions'
    return (
      f'{self.model}: {most}{room}; {self.tokenizer}; scored twice, in two orders: {self.worst:.2g} nats apart at '
      f'most, {self.mean:.2g} on average; {self.temperature}'
    )


def apart(one: Sequence[np.ndarray], other: Sequence[np.ndarray]) -> tuple[float, float]:
  """The largest and the mean difference of two scorings."""
  gaps = np.abs(np.concatenate([*one, np.zeros(0)]) - np.concatenate([*other, np.zeros(0)]))
  return float(gaps.max(initial=0.0)), float(gaps.mean()) if gaps.size else 0.0


def differences(before: Introduction, now: Introduction, tolerance: float) -> list[str]:
  """What tells two models apart, as a diff; nothing where they are one."""
  lines = []
  for field in ('model', 'root'):
    old, new = getattr(before, field), getattr(now, field)
    if old != new:
      lines += [f'-{field}: {old}', f'+{field}: {new}']
  if before.system and now.system and before.system != now.system:
    lines += [f'-system_fingerprint: {before.system}', f'+system_fingerprint: {now.system}']
  if len(before.probe) != len(now.probe):
    lines.append(f'probe: {len(before.probe)} tokens before, {len(now.probe)} now')
  elif before.probe:
    worst, mean = apart([np.array(before.probe)], [np.array(now.probe)])
    if mean > tolerance:
      lines.append(
        f'log-probabilities of the probe: {mean:.3g} nats apart on average, {worst:.3g} at most'
      )
  return lines
