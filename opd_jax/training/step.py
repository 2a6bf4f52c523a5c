"""Floor 5. One step of a stage: sample, score, weigh, update, and what the metrics say of it."""

from collections.abc import Mapping
from typing import Any

import jax

from opd_jax.processes import to_host
from opd_jax.training import (
  following,
  metrics,
  moving,
  optimiser_step,
  probing,
  step_records,
  verbs,
)
from opd_jax.training.pace import Stopwatch
from opd_jax.training.pipeline import Pipeline
from opd_jax.training.run import Run, watched
from opd_jax.training.runtime import StageRuntime
from opd_jax.training.shapes import Example
from opd_jax.training.state import RunPosition, State


def one_step(
  run: Run, runtime: StageRuntime, pipeline: Pipeline, state: State, position: RunPosition
) -> tuple[State, RunPosition, Mapping[str, Any]]:
  """One batch of rollouts, from the question to the new weights, and the metrics of it."""
  watch, weights, waited = Stopwatch(), state.weights, run.count.waited
  runtime.clock.begin()
  with watch('sample'):
    responses, written, begun = pipeline.take(weights, position)
  there = position._replace(moving=written.moving)  # numbers that move stand as when it was written
  with watch('score'):
    evidence = verbs.score(runtime, weights, responses, there, state.memory, begun)
    evidence = jax.block_until_ready(evidence)
  with watch('weigh'):
    batch, survey = jax.block_until_ready(verbs.weigh(runtime, weights, evidence))
  with watch('update'):
    seen = probing.probed(runtime, state, batch, position)
    state, row = verbs.updates(runtime, state, responses, evidence, batch, there)
    state, shocks = following.after_update(runtime, state, evidence, position)
  step, name = position.step + 1, runtime.stage.name
  row = {'step': step, 'stage': name, **row, **seen, **shocks}
  row |= jax.tree.map(float, to_host(survey))
  row |= metrics.of_rollout(responses.rollout, step=position.step)
  row |= {**metrics.of_routes(responses.problems), 'skipped': pipeline.stream.skipped}
  row |= moving.shown(runtime.moving, position.moving)
  row |= {
    **watch.seconds,
    'time/tokens_per_s': row['tokens'] / watch.total,
    'time/compiles': optimiser_step.compiled_programs(),
    'time/compiling': run.count.waited - waited,
    **runtime.clock.idle(),
  }
  after = position.after(len(responses.problems))._replace(stream=pipeline.stream.state())
  moved = following.after_row(runtime, state, after, row)
  row |= moved.seen
  run.recorder.row(row)
  if not run.skip_preflight:  # a resumed run has no dry step
    run.ahead.begin(runtime, state, Example(responses, evidence, batch), there)
  step_records.record_texts(runtime, run.recorder, responses, evidence, batch, there)
  alarms = watched(run, row, position, batch)
  return moved.state, moved.position._replace(alarms=alarms), row
