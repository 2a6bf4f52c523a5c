"""Floor 5. What a row of metrics says of the one metric that somebody looks at."""

import math
from collections.abc import Mapping
from typing import Any


def reading_of(who: str, metric: str, row: Mapping[str, Any], *, was_there: bool) -> float | None:
  """The value of a metric in a row; None where the row has none to tell.

  A row of an evaluation says nothing about training, and the other way round; what is not finite is no reading.

  Args:
    who: looks at it, for errors.
    metric: as metrics.jsonl names it.
    row: of a step or of evaluations.
    was_there: whether it was ever read; one that never was is refused where it should be.
  """
  prefix = _family(metric)
  told = any(name.startswith(prefix) for name in row) if prefix else 'loss' in row
  if not told or (metric not in row and was_there):
    return None
  if metric not in row or not isinstance(row[metric], float | int):
    raise ValueError(
      f'{who} looks at {metric}, and this step reports {sorted(row)}. Bind one of these as its metric.'
    )
  return float(row[metric]) if math.isfinite(row[metric]) else None


def _family(metric: str) -> str:
  """What the metrics begin with that are reported together with this one; '' for those of every step."""
  room, *rest = metric.split('/')
  return {'eval': '/'.join((room, *rest[:1])) + '/', 'probe': 'probe/'}.get(room, '')
