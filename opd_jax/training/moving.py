"""Floor 5. Numbers of a stage that look at metrics: which there are, what they remember, where they stand."""

import dataclasses
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from opd_jax.evaluation.evaluator import Evaluation
from opd_jax.judges import snapshots
from opd_jax.ramps import Latest, Watching
from opd_jax.training.experiment import Stage
from opd_jax.training.measured import check_measured

Memory = Mapping[str, Mapping[str, float]]


def numbers_of(stage: Stage, evaluations: Sequence[Evaluation]) -> tuple[Watching, ...]:
  """The numbers of a stage that look at metrics; refuses what could never move."""
  numbers = dict.fromkeys(_found(stage))
  names = [number.name for number in numbers]
  if len(set(names)) < len(names):
    raise ValueError(
      f'stage {stage.name}: numbers of one name must be equal, got {[*numbers]}. Give each a name of its own.'
    )
  for number in numbers:
    check_measured(number.name, number.metric, stage, evaluations)
    _check_probe(stage, number)
  return tuple(numbers)


def _check_probe(stage: Stage, number: Watching) -> None:
  if not number.metric.startswith('probe/'):
    return
  probe = stage.method.probe
  known = [] if probe is None else ['window', *(f'cosine_{each}' for each in probe.windows)]
  if number.metric.removeprefix('probe/') not in known:
    raise ValueError(
      f'stage {stage.name}: {number.name} looks at {number.metric}, and the method measures '
      f'{[f"probe/{name}" for name in known]}.'
    )
  if probe is not None and isinstance(number, Latest) and number.every != probe.every:
    raise ValueError(
      f'stage {stage.name}: {number.name} expects a probe every {number.every} steps, the method makes one every '
      f'{probe.every}.'
    )


def _found(stage: Stage) -> Iterator[Watching]:
  """In who writes, in the rules of decoding, in how judges follow the student."""
  refreshes = snapshots.refreshes_of(stage.judges, stage.asked)
  for record in (stage.mix, *stage.sampling.decoding.rules, *refreshes.values()):
    fields: Any = record
    for field in dataclasses.fields(fields):
      number = getattr(record, field.name)
      if isinstance(number, Watching):
        yield number


def decisions(memory: Memory | None) -> dict[str, float]:
  """Where the numbers stand."""
  return {name: each['value'] for name, each in (memory or {}).items()}


def after(
  numbers: Sequence[Watching], memory: Memory | None, row: Mapping[str, Any]
) -> dict[str, dict[str, float]]:
  """What the numbers remember after a row of metrics.

  A row of an evaluation says nothing about training, and the other way round; what is not finite is no reading.
  """
  moved = {name: dict(each) for name, each in (memory or {}).items()}
  for number in numbers:
    prefix = _family(number.metric)
    told = any(name.startswith(prefix) for name in row) if prefix else 'loss' in row
    if not told:
      continue
    if number.metric not in row and number.name in moved:
      continue  # it was there before: nothing was measured this time
    if number.metric not in row or not isinstance(row[number.metric], float | int):
      raise ValueError(
        f'{number.name} looks at {number.metric}, and this step reports {sorted(row)}. Bind one of these as its metric.'
      )
    if math.isfinite(row[number.metric]):
      moved[number.name] = number.after(moved.get(number.name, {}), float(row[number.metric]))
  return moved


def _family(metric: str) -> str:
  """What the metrics begin with that are reported together with this one; '' for those of every step."""
  room, *rest = metric.split('/')
  return {'eval': '/'.join((room, *rest[:1])) + '/', 'probe': 'probe/'}.get(room, '')


def shown(numbers: Sequence[Watching], memory: Memory | None) -> dict[str, float]:
  """Where the numbers stand, as metrics."""
  known = decisions(memory)
  return {
    f'moving/{number.name}': float(known.get(number.name, number.begin)) for number in numbers
  }
