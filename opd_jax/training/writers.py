"""Floor 5. The writers of a stage, as `rollouts.writing` wants them: models with the prompts that they read."""

from collections.abc import Sequence

import jax
import numpy as np
from jaxtyping import Bool

from opd_jax.data.problems import Problem
from opd_jax.data.prompts import left_padded
from opd_jax.data.templates import TaughtTokens
from opd_jax.inference import sampler
from opd_jax.inference.buckets import bucket
from opd_jax.inference.decoding import Forbid
from opd_jax.inference.sampler import Model
from opd_jax.judges import remote_writer
from opd_jax.judges.reading import remote_of
from opd_jax.judges.remote import ServedJudge
from opd_jax.judges.scenes import Scene
from opd_jax.models import transformer
from opd_jax.processes import carried
from opd_jax.responses import PromptBatch, Responses
from opd_jax.rollouts import writing
from opd_jax.rollouts.distant import DistantWriter, Text
from opd_jax.rollouts.writing import Writer
from opd_jax.training.runtime import StageRuntime
from opd_jax.training.state import RunPosition
from opd_jax.types import Weights


def student_model(runtime: StageRuntime, weights: Weights) -> Model:
  """The student as a writer, where it lies while it writes."""
  layout, params = runtime.experiment.writing_layout, weights.student
  if {*layout.mesh.devices.flat} != {*runtime.layout.mesh.devices.flat}:
    shapes = transformer.abstract(runtime.config, layout)
    planned = isinstance(jax.tree.leaves(params)[0], jax.ShapeDtypeStruct)
    params = (
      shapes if planned else carried(params, jax.tree.map(lambda leaf: leaf.sharding, shapes))
    )
  return sampler.unrolled(Model(runtime.config, layout, params))


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
) -> Writer | DistantWriter:
  """The teacher as a writer, behind the prompts that it reads itself.

  Args:
    runtime, weights: of the moment.
    batch: whose problems it is asked.
    scenes: what its context may show; see `before_writing`.
    wanted: the rows that it writes in; where its context shows it nothing there, it is refused.
  """
  judge = runtime.author or runtime.judges['teacher']
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
  if (remote := remote_of(judge)) is not None:
    return _distant(runtime, remote, batch, scenes, prompts)
  unread = [runtime.tokenizer.pad]
  tokens = [unread if prompt is None else prompt for prompt in prompts]
  width = bucket(max(map(len, tokens)), minimum=8, maximum=1 << 30)
  own = left_padded(tokens, width=width, pad=runtime.tokenizer.pad)
  own = own._replace(row=batch.prompts.row, group=batch.prompts.group)
  return Writer(judge.model(weights), own)


def _distant(
  runtime: StageRuntime,
  judge: ServedJudge,
  batch: PromptBatch,
  scenes: Sequence[Scene],
  prompts: Sequence[Sequence[int] | None],
) -> DistantWriter:
  """A served teacher as a writer: of tokens behind its own prompts, or of texts to its own messages."""
  key = np.asarray(jax.random.key_data(runtime.key)).ravel().tolist()
  seeds = remote_writer.seeds_of(key, np.asarray(batch.prompts.row).tolist())
  decoding, budget = runtime.sampling.decoding, runtime.sampling.budget

  def tokens(rows: Sequence[int]) -> list[Text]:
    return remote_writer.tokens_written(
      judge,
      [prompts[row] or [] for row in rows],
      [seeds[row] for row in rows],
      decoding=decoding,
      budget=budget,
      columns=runtime.config.vocab_size,
    )

  def texts(rows: Sequence[int]) -> list[Text]:
    return remote_writer.texts_written(
      judge,
      [judge.template.turns(judge.messages(scenes[row]) or ()) for row in rows],
      [seeds[row] for row in rows],
      template=runtime.stage.template,
      decoding=decoding,
      budget=budget,
    )

  write = texts if judge.spec.writes == 'text' else tokens
  return DistantWriter(write, is_plain=all(isinstance(rule, Forbid) for rule in decoding.rules))
