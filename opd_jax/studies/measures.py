"""Floor 6. Reads what a run measured: metrics.jsonl, and outcomes.jsonl for single problems."""

import re
from collections import defaultdict
from pathlib import Path

import numpy as np

from opd_jax.evaluation import summary
from opd_jax.studies.study import Measure
from opd_jax.training import recorder

AVERAGE = re.compile(r'eval/(.+)/(?:avg@\d+|accuracy)')


def value_of(workdir: Path, measure: Measure) -> float:
  """A measure of a run, scaled."""
  rows = recorder.read(workdir)
  values = [row[measure.key] for row in rows if row.get(measure.key) is not None]
  if not values:
    there = sorted({name for row in rows for name in row if not name.startswith('time/')})
    raise ValueError(
      f'{workdir / "metrics.jsonl"} has no {measure.key}, which the measure {measure.name} reads. '
      f'It has {", ".join(there)}.'
    )
  return measure.scale * float(np.mean(values[-measure.last :]))


def by_problem(workdir: Path, measure: Measure) -> dict[str, float] | None:
  """The measure of each problem, scaled; None where it is no average over problems, or no problem is named."""
  average, file = AVERAGE.fullmatch(measure.key), workdir / 'outcomes.jsonl'
  if average is None or measure.last > 1 or not file.exists():
    return None
  rows = [row for row in recorder.read_lines(file) if row['evaluation'] == average[1]]
  step = max((row['step'] for row in rows), default=0)
  counted = defaultdict[str, list[float]](list)
  for row in rows:
    if row['step'] == step and (count := summary.credit(row)) is not None:
      counted[str(row['problem'])].append(count)
  if not counted or '' in counted:
    return None
  return {name: measure.scale * float(np.mean(values)) for name, values in counted.items()}
