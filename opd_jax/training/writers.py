"""Floor 5. The writers of a stage, as `rollouts.writing` wants them: models with the prompts that they read."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool

from opd_jax.data.problems import Problem
from opd_jax.data.prompts import left_padded
from opd_jax.data.templates import TaughtTokens
from opd_jax.inference import sampler
from opd_jax.inference.buckets import bucket
from opd_jax.inference.sampler import Model
from opd_jax.judges.scenes import Scene
from opd_jax.responses import PromptBatch, Responses
from opd_jax.rollouts import writing
from opd_jax.rollouts.writing import Writer
from opd_jax.training.runtime import StageRuntime
from opd_jax.training.state import RunPosition
from opd_jax.types import Weights


def student_model(runtime: StageRuntime, weights: Weights) -> Model:
  """The student as a writer, where it lies while it writes."""
  layout = runtime.experiment.sampling_layout or runtime.layout
  return sampler.unrolled(Model(runtime.config, layout, weights.student))


def demonstrations(runtime: StageRuntime, problems: Sequence[Problem]) -> list:
  if not runtime.stage.mix.needs_data:
    return [None] * len(problems)
  response = runtime.stage.template.response
  return [
    None
    if problem.demonstration is None
    else response(runtime.tokenizer, problem.demonstration, problem.messages)
    for problem in problems
  ]


def before_writing(runtime: StageRuntime, batch: PromptBatch, position: RunPosition) -> list[Scene]:
  """What contexts may look at while nothing is written yet."""
  empty = [''] * len(batch.problems)
  unwritten = writing.given(
    batch.prompts, [TaughtTokens([], [])] * len(empty), width=1, version=position.step
  )
  return runtime.scenes(Responses(batch.problems, unwritten, empty, empty, empty, empty), position)


def teacher_writer(
  runtime: StageRuntime,
  weights: Weights,
  batch: PromptBatch,
  scenes: Sequence[Scene],
  wanted: Bool[np.ndarray, ' B'],
) -> Writer:
  """The teacher as a writer, behind the prompts that it reads itself.

  Args:
    runtime, weights: of the moment.
    batch: whose problems it is asked.
    scenes: what its context may show; see `before_writing`.
    wanted: the rows that it writes in; where its context shows it nothing there, it is refused.
  """
  judge = runtime.judges['teacher']
  prompts = judge.prompts(scenes)
  bare = [
    scene.problem.name or 'a row'
    for scene, prompt, here in zip(scenes, prompts, wanted, strict=True)
    if here and prompt is None
  ]
  if bare:
    raise ValueError(
      f'stage {runtime.stage.name}: the teacher is to write, and its context shows it nothing for {len(bare)} rows, '
      f'e.g. {bare[0]}. Give it a context that always answers, or let the student write.'
    )
  unread = [runtime.tokenizer.pad]
  tokens = [unread if prompt is None else prompt for prompt in prompts]
  width = bucket(max(map(len, tokens)), minimum=8, maximum=1 << 30)
  own = left_padded(tokens, width=width, pad=runtime.tokenizer.pad)
  own = own._replace(row=batch.prompts.row, group=batch.prompts.group)
  return Writer(judge.model(weights), own)
