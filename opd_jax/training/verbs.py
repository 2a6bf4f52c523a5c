"""Floor 5. The four verbs of a step: sample, score, weigh, update. Each takes the weights of the moment."""

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from opd_jax import ramps
from opd_jax import responses as batches
from opd_jax.data.problems import Problem
from opd_jax.method import Evidence, targets_of
from opd_jax.processes import to_host
from opd_jax.responses import Responses, check_fresh
from opd_jax.rollouts import writing
from opd_jax.training import forking, gradient, metrics, moving, optimiser_step, scoring, writers
from opd_jax.training.gradient import Batch
from opd_jax.training.runtime import StageRuntime
from opd_jax.training.state import RunPosition, State
from opd_jax.types import Rollout, Weights

# --- sample -----------------------------------------------------------------------------------------


def sample(
  runtime: StageRuntime,
  weights: Weights,
  problems: Sequence[Problem],
  position: RunPosition,
  *,
  version: int | None = None,
) -> Responses:
  """Responses to problems, by whoever the stage or its method wants.

  Args:
    runtime, weights: of the moment.
    problems: of a batch.
    position: at which the batch will be learnt from.
    version: stamp of the weights; None: they are those of the position.
  """
  stage, tokenizer = runtime.stage, runtime.tokenizer
  batch = batches.prompt_batch(
    problems, stage.samples, stage.template, tokenizer, first_row=position.rows
  )
  step, decisions = position.stage_step, moving.decisions(position.moving)
  mix = ramps.settled(stage.mix, step, decisions)
  by_student, by_teacher, _ = mix.deal(len(batch.problems))
  wanted = by_teacher | by_student if mix.prefix or mix.beside else by_teacher
  rollout = writing.write(
    mix,
    batch.prompts,
    writers.demonstrations(runtime, batch.problems),
    runtime.key,
    student=lambda: writers.student_model(runtime, weights),
    teacher=lambda: writers.teacher_writer(
      runtime, weights, batch, writers.before_writing(runtime, batch, position), wanted
    ),
    sampling=runtime.sampling,
    columns=runtime.config.vocab_size,
    numbers=runtime.sampling.decoding.numbers_at(step, decisions),
    version=position.step if version is None else version,
  )
  rollout = batches.trimmed(rollout)
  _check_room(runtime, batch.problems, rollout)
  stops = runtime.sampling.decoding.stop_tokens
  return batches.verified(batch.problems, rollout, tokenizer, stage.task, stops=stops)


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
  begun: Mapping[str, scoring.Begun] = scoring.NOTHING,
) -> Evidence:
  """What the student and the judges think of the responses, and of the forks that the method makes of them.

  Args:
    runtime, weights: of the moment.
    responses: a batch.
    position: before the step.
    memory: of the method.
    begun: scores of judges that began when the batch was written.
  """
  scenes = runtime.scenes(responses, position)
  scores = scoring.scores_of(runtime, weights, responses.rollout, scenes, begun)
  moment = scoring.Moment(position, memory)
  evidence = scoring.evidence_of(runtime, weights, responses.rollout, scores, moment)
  if runtime.stage.method.forks is None:
    return evidence
  return forking.forked(runtime, weights, responses, scenes, evidence, moment)


# --- weigh ------------------------------------------------------------------------------------------


def weigh(
  runtime: StageRuntime, weights: Weights, evidence: Evidence
) -> tuple[Batch, dict[str, Any]]:
  """The method's weighted terms, and what can be said of them. Forks that no term weighs are left out."""
  terms = runtime.weigh(evidence)
  targets = targets_of(evidence, scoring.heads_of(runtime, weights, evidence))
  batch = Batch(evidence.rollout, evidence.mask, targets, terms)
  return forking.taught(runtime, batch, evidence.forks), metrics.of_evidence(evidence, terms)


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
    state.base,
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
  sizes = to_host({**sizes, 'loss': total.loss})
  return state._replace(params=params, optimiser=optimiser), {
    **{name: float(value) for name, value in sizes.items()},
    **metrics.of_tally(to_host(total.tally)),
  }


def updates(
  runtime: StageRuntime,
  state: State,
  responses: Responses,
  evidence: Evidence,
  batch: Batch,
  position: RunPosition,
) -> tuple[State, dict[str, Any]]:
  """All steps that the stage makes of one batch. Metrics come from the first: its weights wrote the batch.

  A loop that samples ahead hands in responses of an earlier position; a method that does not correct for their age is
  refused them.
  """
  stage, rows = runtime.stage, np.arange(len(responses.problems))
  check_fresh(
    responses.rollout,
    version=position.step,
    may_be_older=runtime.corrects_age,
    staleness=stage.staleness,
  )
  tokens = int(np.asarray(evidence.rollout.mask).sum())  # of forks, too
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
  return state, {**row, 'tokens': tokens}


def _size(number: float) -> float:
  """What is not finite is the largest."""
  return number if np.isfinite(number) else np.inf
