"""Floor 5. How fast a step is, and where its time goes."""

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any


class Stopwatch:
  """Seconds of each verb."""

  def __init__(self):
    self.seconds: dict[str, float] = {}

  @contextmanager
  def __call__(self, verb: str) -> Iterator[None]:
    began = time.monotonic()
    yield
    self.seconds[f'time/{verb}'] = time.monotonic() - began

  @property
  def total(self) -> float:
    return sum(self.seconds.values())


def pace(stage: str, row: Mapping[str, Any]) -> str:
  """How fast a step was, and where its time went."""
  spent = {verb: row[f'time/{verb}'] for verb in ('sample', 'score', 'weigh', 'update')}
  whole = sum(spent.values())
  split = ', '.join(f'{verb} {seconds / whole:.0%}' for verb, seconds in spent.items())
  return f'{stage}: {whole:.2f} s a step ({split}), {row["time/tokens_per_s"]:.0f} tokens/s'
