"""Floor 6. The plan of a run, as `opd plan --workdir` wrote it, in cells of a table."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from opd_jax import units

FILE = 'plan.json'


class Stage(NamedTuple):
  """What was planned for a stage."""

  name: str
  held: list[tuple[str, str]]  # what lies on each device, and its bytes
  programs: list[
    tuple[str, ...]
  ]  # verb, name, memory, memory with the rest, what it sends in a step
  refused: list[tuple[str, str, str]]  # verb, name, why there is no room
  least: list[tuple[str, str, str]]  # verb, seconds of a step at least, what bounds them
  step: str  # seconds
  room: str  # of a device
  fits: bool | None  # None where nothing was compiled


class Plan(NamedTuple):
  """What `opd plan` foretold."""

  mesh: str
  topology: str
  stages: list[Stage]


def read(file: Path) -> Plan | None:
  """None where a run has no plan."""
  if not file.is_file():
    return None
  try:
    told = json.loads(file.read_text(encoding='utf-8'))
    compiled = {each['stage']: each for each in told['compiled']}
    stages = [_stage(name, held, compiled.get(name)) for name, held in told['stages'].items()]
    slices = f'{told["slices"]} x ' if told['slices'] > 1 else ''
    return Plan(str(told['mesh']), f'{slices}{told["topology"] or ""}', stages)
  except (ValueError, KeyError, TypeError, AttributeError) as error:
    raise ValueError(
      f'report: {file} is not what `opd plan --workdir` writes ({type(error).__name__}: {error}). Plan again, or '
      'remove it.'
    ) from error


def _stage(name: str, held: Mapping[str, int], compiled: Mapping[str, Any] | None) -> Stage:
  lies = [(part, units.memory(size)) for part, size in held.items() if size]
  if compiled is None:
    return Stage(name, lies, [], [], [], '', '', None)
  programs = [
    (
      each['verb'],
      each['name'],
      units.memory(each['peak']),
      units.memory(each['total']),
      units.memory(sum(each['sent'].values()) * each['loop'] * each['times']),
    )
    for each in compiled['programs']
  ]
  seconds = compiled['least_seconds'] or {}
  return Stage(
    name=name,
    held=lies,
    programs=programs,
    refused=[(each['verb'], each['name'], each['refused']) for each in compiled['failed']],
    least=[(verb, f'{least:.3g}', bound) for verb, (least, bound) in seconds.items()],
    step=f'{sum(least for least, _ in seconds.values()):.3g}' if seconds else '',
    room='' if compiled['memory'] is None else units.memory(compiled['memory']),
    fits=compiled['fits'],
  )
