"""Floor 6. What a run costs, from its experiment alone: a bound, with every response as long as its budget.

Prompts come on top of it, forks and prefixes too; answers that end earlier take away more.
"""

import dataclasses
import math
import re
from collections.abc import Iterator, Mapping
from pathlib import Path

from opd_jax import ramps
from opd_jax.evaluation.evaluator import Evaluation
from opd_jax.judges.build import types_of
from opd_jax.judges.spec import Judge, Served, readers
from opd_jax.method_reads import judges_read
from opd_jax.models import presets
from opd_jax.models.config import ModelConfig
from opd_jax.planning.flops import Cost, cache_read, scoring, training, writing
from opd_jax.storage import load
from opd_jax.training.experiment import Experiment, Stage
from opd_jax.types import ScoreRequest

Shapes = Mapping[
  str, ModelConfig
]  # of models that are yet to be trained, by the name they will have


def cost_of(experiment: Experiment, shapes: Shapes) -> Cost:
  """Of a whole run, its evaluations included."""
  total, step = Cost(), 0
  for number, stage in enumerate(experiment.stages):
    total = total.plus(of_step(experiment.model, stage, shapes), stage.steps)
    for evaluation in experiment.evaluations:
      due = sum(evaluation.is_due(step + after) for after in range(1, stage.steps))
      times = due + 1 + (number == 0)  # after the stage, and before the first
      total = total.plus(_evaluation(experiment.model, evaluation, stage, shapes), times)
    step += stage.steps
  return total


def of_step(student: ModelConfig, stage: Stage, shapes: Shapes) -> Cost:
  """Of one step of a stage, without evaluations."""
  total = Cost()
  for part in parts_of_step(student, stage, shapes).values():
    total = total.plus(part)
  return total


def parts_of_step(student: ModelConfig, stage: Stage, shapes: Shapes) -> dict[str, Cost]:
  """The same apart: 'write', 'update', the scores of the 'student', and those of every judge by its name."""
  rows, budget, slots = stage.prompts * stage.samples, stage.sampling.budget, stage.sampling.slots
  mix = stage.mix
  teacher, data = ramps.extremes(mix.teacher), ramps.extremes(mix.data)
  own, others = rows * (1 - teacher[0] - data[0]), rows * teacher[1]
  write = writing(student, own, budget, slots=slots)
  if stage.teacher_writes:
    both = own if mix.beside else 0
    for config in _configs(student, stage, 'teacher', shapes):
      write = write.plus(writing(config, others + both, budget, slots=slots))
  parts = {'write': write, 'update': Cost().plus(training(student, rows, budget), stage.updates)}
  needs = stage.method.needs
  if needs.of_student != ScoreRequest() or 'student' in judges_read(stage.method):
    parts['student'] = scoring(student, rows, budget)
  for name in stage.asked:
    parts[name] = Cost()
    for config in _configs(student, stage, name, shapes):
      parts[name] = parts[name].plus(scoring(config, rows, budget))
  return parts


def decoding_reads(config: ModelConfig, stage: Stage, *, weights: int, devices: int) -> float:
  """Bytes that a device reads while a batch is written: its weights for every token, and its part of the cache.

  Args:
    config: of the writer.
    stage: whose batch.
    weights: bytes of the writer there.
    devices: that share the rows.
  """
  rows, budget = stage.prompts * stage.samples, stage.sampling.budget
  steps = budget * math.ceil(rows / min(stage.sampling.slots, rows))
  return steps * weights + cache_read(config, rows, budget) / devices


def _evaluation(student: ModelConfig, asked: Evaluation, stage: Stage, shapes: Shapes) -> Cost:
  rows = asked.problems * asked.samples
  total = writing(student, rows, asked.budget, slots=asked.slots)
  if 'teacher' in stage.judges and not asked.decoding.rules:  # the reverse KL is measured, too
    for config in _configs(student, stage, 'teacher', shapes):
      total = total.plus(scoring(config, rows, asked.budget))
  if 'teacher' in stage.judges and asked.draft_of_teacher:
    for config in _configs(student, stage, 'teacher', shapes):
      total = total.plus(writing(config, rows, asked.budget, slots=asked.slots))
  return total


def _configs(
  student: ModelConfig, stage: Stage, name: str, shapes: Shapes
) -> Iterator[ModelConfig]:
  """Of the models that work here under the name of a judge. Of routed ones the largest would do; all are counted."""
  for _, part in readers(stage.judges[name]):
    if isinstance(part, Served):  # costs nothing here
      continue
    yield config_of(part, student, shapes)


def config_of(judge: Judge, student: ModelConfig, shapes: Shapes) -> ModelConfig:
  """The model that a single judge asks."""
  if judge.weights is None:
    return student
  config = shapes[judge.weights] if judge.weights in shapes else shape_of(judge.weights)
  return dataclasses.replace(config, **types_of(judge))


def shape_of(weights: str) -> ModelConfig:
  """The shape of a folder, or of a preset, also by the hub id of its model: nothing is fetched.

  >>> [shape_of(f'Qwen/Qwen3-{size}').num_layers for size in ('30B-A3B', '4B-Base', '1.7B')]
  [48, 36, 28]
  """
  if Path(weights).is_dir():
    return load.config_of(weights)
  name = _plain(weights.rpartition('/')[2])
  for preset, make in presets.every().items():
    if _plain(preset) == name:
      return make()
  raise ValueError(
    f'cost: the shape of {weights} is not known without its files. Known are the presets, '
    f'{", ".join(presets.every())}, and the hub ids of those models.'
  )


def _plain(name: str) -> str:
  return re.sub(r'-(base|instruct)$|[-_]', '', name.lower().replace('.', 'p'))
