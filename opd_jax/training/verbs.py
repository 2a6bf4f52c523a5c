"""Floor 5. The four verbs of a step: sample, score, weigh, update. Each takes the weights of the moment."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from opd_jax import responses as batches
from opd_jax import rollouts
from opd_jax.data.problems import Problem
from opd_jax.data.prompts import left_padded, unpadded
from opd_jax.data.templates import TaughtTokens
from opd_jax.inference import sampler
from opd_jax.inference.buckets import bucket
from opd_jax.inference.sampler import Model
from opd_jax.judges import snapshots
from opd_jax.method import Evidence, targets_of
from opd_jax.processes import to_host
from opd_jax.responses import PromptBatch, Responses
from opd_jax.rollouts import Writer
from opd_jax.training import gradient, metrics, optimiser_step
from opd_jax.training.gradient import Batch
from opd_jax.training.runtime import StageRuntime
from opd_jax.training.state import RunPosition, State
from opd_jax.types import Rollout, Scores, Weights

# --- sample -----------------------------------------------------------------------------------------


def sample(
  runtime: StageRuntime, weights: Weights, problems: Sequence[Problem], position: RunPosition
) -> Responses:
  """Responses to problems, by whoever the stage or its method wants."""
  stage, tokenizer = runtime.stage, runtime.tokenizer
  batch = batches.prompt_batch(
    problems, stage.samples, stage.template, tokenizer, first_row=position.rows
  )
  rollout = rollouts.write(
    stage.mix,
    batch.prompts,
    _demonstrations(runtime, batch.problems),
    runtime.key,
    student=lambda: student_model(runtime, weights),
    teacher=lambda: _teacher_writer(runtime, weights, batch, position),
    sampling=runtime.sampling,
    columns=runtime.config.vocab_size,
    step=position.stage_step,
    version=position.step,
  )
  rollout = batches.trimmed(rollout)
  _check_room(runtime, batch.problems, rollout)
  stops = runtime.sampling.decoding.stop_tokens
  return batches.verified(batch.problems, rollout, tokenizer, stage.task, stops=stops)


def student_model(runtime: StageRuntime, weights: Weights) -> Model:
  """The student as a writer, where it lies while it writes."""
  layout = runtime.experiment.sampling_layout or runtime.layout
  return sampler.unrolled(Model(runtime.config, layout, weights.student))


def _demonstrations(runtime: StageRuntime, problems: Sequence[Problem]) -> list:
  if not runtime.stage.mix.data:
    return [None] * len(problems)
  response = runtime.stage.template.response
  return [
    None
    if problem.demonstration is None
    else response(runtime.tokenizer, problem.demonstration, problem.messages)
    for problem in problems
  ]


def _teacher_writer(
  runtime: StageRuntime, weights: Weights, batch: PromptBatch, position: RunPosition
) -> Writer:
  """The teacher as a writer, behind the prompts that it reads itself."""
  judge, empty = runtime.judges['teacher'], [''] * len(batch.problems)
  unwritten = rollouts.given(
    batch.prompts, [TaughtTokens([], [])] * len(empty), width=1, version=position.step
  )
  scenes = runtime.scenes(Responses(batch.problems, unwritten, empty, empty), position)
  prompts = judge.prompts(scenes)
  mix = runtime.stage.mix
  by_student, by_teacher, _ = mix.deal(len(prompts))
  wanted = by_teacher | by_student if mix.prefix or mix.beside else by_teacher
  bare = [
    scene.problem.name or 'a row'
    for scene, prompt, here in zip(scenes, prompts, np.asarray(wanted), strict=True)
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


def _check_room(runtime: StageRuntime, problems: Sequence[Problem], rollout: Rollout) -> None:
  """Refuses a row that the student's position table does not hold."""
  whole = rollout.lengths + rollout.prompt.length
  table = runtime.config.max_positions
  if (longest := int(whole.max())) > table:
    raise ValueError(
      f'stage {runtime.stage.name}: {problems[int(whole.argmax())].name} has {longest} tokens with its response, the '
      f'position table of the student {table}. Leave such rows out, or take a longer table.'
    )


# --- score ------------------------------------------------------------------------------------------


def score(
  runtime: StageRuntime,
  weights: Weights,
  responses: Responses,
  position: RunPosition,
  memory: Any = None,
) -> Evidence:
  """What the student and the judges think of the responses."""
  rollout, needs = responses.rollout, runtime.stage.method.needs
  scores = {'student': _student_scores(runtime, weights, rollout)}
  top, ids = scores['student'].top_k, None
  if top is not None and any(each.at_student_top_k for each in runtime.requests.values()):
    ids = to_host(top.ids)  # a judge may lie elsewhere
  scenes = runtime.scenes(responses, position)
  for name, judge in runtime.judges.items():
    request = runtime.requests[name]
    wanted = request.at_student_top_k
    asked = ids[..., :wanted] if ids is not None and wanted else None
    scores[name] = judge.score(weights, scenes, rollout, asked, request)
  evidence = Evidence.of(
    rollout,
    scores,
    needs,
    memory=memory,
    step=np.asarray(position.stage_step, np.int32),
    key=jax.random.fold_in(runtime.weigh_key, position.step),
  )
  if not needs.measures:
    return evidence
  batch = Batch(
    rollout, evidence.mask, targets_of(evidence, _heads(runtime, weights, evidence)), ()
  )
  measures = gradient.measured(
    weights.student,
    batch,
    needs.measures,
    config=runtime.config,
    layout=runtime.layout,
    microbatches=runtime.stage.microbatches,
  )
  return evidence._replace(measures=measures)


def _student_scores(runtime: StageRuntime, weights: Weights, rollout: Rollout) -> Scores:
  """Scores the student. Where the method reads none of it: the sampler's log-probabilities, NaN where another wrote."""
  if runtime.scores_student:
    request = runtime.stage.method.needs.of_student
    prompts = unpadded(rollout.prompt)
    return runtime.student.score_prompts(weights, prompts, rollout, None, request)
  logp = np.where(rollout.by_student, rollout.logp, np.float32(np.nan))
  return Scores(logp=logp, known=rollout.by_student)


def _heads(runtime: StageRuntime, weights: Weights, evidence: Evidence) -> dict[str, Any]:
  """Output projections of the judges whose hidden states were scored."""
  return {
    name: judge.head(weights)
    for name, judge in runtime.judges.items()
    if evidence.scores[name].hidden is not None
  }


# --- weigh ------------------------------------------------------------------------------------------


def weigh(
  runtime: StageRuntime, weights: Weights, evidence: Evidence
) -> tuple[Batch, dict[str, Any]]:
  """The method's weighted terms, and what can be said of them."""
  terms = runtime.weigh(evidence)
  targets = targets_of(evidence, _heads(runtime, weights, evidence))
  batch = Batch(evidence.rollout, evidence.mask, targets, terms)
  return batch, metrics.of_evidence(evidence, terms)


# --- update -----------------------------------------------------------------------------------------


def update(
  runtime: StageRuntime,
  state: State,
  batch: Batch,
  *,
  rows: np.ndarray | None = None,
  scale: float = 1.0,
  dry: bool = False,
) -> tuple[State, dict[str, Any]]:
  """One step of the optimiser.

  Args:
    runtime: the stage.
    state: before.
    batch: weighed.
    rows: of the batch; None takes all.
    scale: of the loss, e.g. the number of minibatches where coefficients are divided for the whole batch.
    dry: changes nothing.
  """
  total, _ = gradient.gradient(
    state.params,
    batch,
    config=runtime.config,
    layout=runtime.layout,
    microbatches=runtime.stage.microbatches,
    rows=rows,
    diagnose='teacher' if 'teacher' in batch.targets else None,
  )
  if scale != 1.0:
    larger = lambda tree: jax.tree.map(lambda x: scale * x, tree)
    total = total._replace(loss=scale * total.loss, gradient=larger(total.gradient))
  params, optimiser, sizes = optimiser_step.apply(
    state.params,
    state.optimiser,
    jnp.full_like(total.loss, jnp.nan) if dry else total.loss,
    total.gradient,
    optimiser=runtime.stage.optimiser,
    config=runtime.config,
    layout=runtime.layout,
  )
  sizes = jax.device_get({**sizes, 'loss': total.loss})
  return state._replace(params=params, optimiser=optimiser), {
    **{name: float(value) for name, value in sizes.items()},
    **metrics.of_tally(jax.device_get(total.tally)),
  }


def updates(
  runtime: StageRuntime,
  state: State,
  responses: Responses,
  evidence: Evidence,
  batch: Batch,
  position: RunPosition,
) -> tuple[State, dict[str, Any]]:
  """All steps that the stage makes of one batch. Metrics come from the first: its weights wrote the batch."""
  stage, rows = runtime.stage, np.arange(len(responses.problems))
  parts = np.split(rows, stage.minibatches)  # neighbours answer one question: groups stay whole
  row: dict[str, Any] = {}
  for number in range(stage.updates * stage.minibatches):
    part = parts[number % stage.minibatches]
    if number and stage.method.reweigh:
      fresh = batches.select(responses, part)
      evidence = score(runtime, state.weights, fresh, position, evidence.memory)
      evidence = evidence._replace(key=jax.random.fold_in(evidence.key, number))
      state, latest = update(runtime, state, weigh(runtime, state.weights, evidence)[0])
    elif stage.minibatches == 1:
      state, latest = update(runtime, state, batch)
    else:
      state, latest = update(runtime, state, batch, rows=part, scale=float(stage.minibatches))
    row = row or latest
    if number:
      row |= {f'{name}_last': latest[name] for name in ('loss', 'grad_norm')}
      row['grad_norm_max'] = max(
        row.get('grad_norm_max', row['grad_norm']), latest['grad_norm'], key=_size
      )
  return state, {**row, 'tokens': int(np.asarray(batch.rollout.mask).sum())}


def _size(number: float) -> float:
  """What is not finite is the largest."""
  return number if np.isfinite(number) else np.inf


def follow(runtime: StageRuntime, state: State, evidence: Evidence, stage_step: int) -> State:
  """After the updates: refreshes the snapshots of the student, and the method's memory.

  Args:
    stage_step: the step of the stage that has just been made, the first being 1.
  """
  refreshes = snapshots.refreshes_of(runtime.stage.judges, runtime.stage.asked)
  moved = snapshots.followed(state.snapshots, refreshes, state.params, stage_step)
  return state._replace(snapshots=moved, memory=runtime.remember(evidence))
