"""Floor 5. Numbers of a stage that look at metrics: which there are, what they remember, where they stand."""

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from opd_jax.data.curriculum import weights_that_watch
from opd_jax.evaluation.evaluator import Evaluation
from opd_jax.judges import scenes, snapshots, spec
from opd_jax.ramps import Latest, Watching
from opd_jax.training.experiment import Stage
from opd_jax.training.measured import check_measured
from opd_jax.training.readings import reading_of

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
  """In what is asked, in who writes, in the rules of decoding, in how judges follow the student and what they see."""
  yield from weights_that_watch(stage.task)
  for name in stage.asked:
    for _, judge in spec.readers(stage.judges[name]):
      yield from scenes.numbers_of(judge.context)
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
  """What the numbers remember after a row of metrics."""
  moved = {name: dict(each) for name, each in (memory or {}).items()}
  for number in numbers:
    value = reading_of(number.name, number.metric, row, was_there=number.name in moved)
    if value is not None:
      moved[number.name] = number.after(moved.get(number.name, {}), value)
  return moved


def shown(numbers: Sequence[Watching], memory: Memory | None) -> dict[str, float]:
  """Where the numbers stand, as metrics."""
  known = decisions(memory)
  return {
    f'moving/{number.name}': float(known.get(number.name, number.begin)) for number in numbers
  }
