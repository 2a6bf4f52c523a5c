"""Floor 5. The run, from top to bottom: stages, and in each of them sample, score, weigh, update.

The same call resumes: everything that moves is in the checkpoint, so a run that was killed anywhere ends with the same
numbers as one that was not.
"""

import gc
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax

from opd_jax.data.curriculum import Curriculum
from opd_jax.data.stream import Stream
from opd_jax.evaluation import geometry
from opd_jax.processes import any_process
from opd_jax.training import (
  following,
  inspection,
  metrics,
  moving,
  optimiser_step,
  preflight,
  probing,
  step_records,
  stopping,
  verbs,
)
from opd_jax.training import workdir as workdirs
from opd_jax.training.checkpoints import Checkpointer, state_of
from opd_jax.training.evaluations import Evaluations
from opd_jax.training.experiment import Experiment
from opd_jax.training.pace import Stopwatch, pace
from opd_jax.training.recorder import Recorder
from opd_jax.training.runtime import StageRuntime, build_runtime
from opd_jax.training.state import (
  RunPosition,
  State,
  abstract_state,
  begin,
  initial_state,
  starting_point,
)
from opd_jax.types import Params


class Listener(NamedTuple):
  """Who listens to a run."""

  say: Callable[[str], None] = print
  progress: Callable[[int, int, str], None] = lambda done, total, text: None
  findings: Callable[[Sequence[inspection.Finding]], None] = lambda findings: None  # before step 0


class Outcome(NamedTuple):
  """How a call ended."""

  state: State
  position: RunPosition
  finished: bool  # False: interrupted or stopped, and saved
  stopped: str = ''  # why a rule of a stage stopped the run; '' where none did


class Run(NamedTuple):
  """What the parts of a run share."""

  experiment: Experiment
  workdir: Path
  recorder: Recorder
  checkpointer: Checkpointer
  listener: Listener
  interrupted: Callable[[], bool]
  skip_preflight: bool
  first: Params | None  # where geometry is wanted: the weights that it began with, on the host


def train(
  experiment: Experiment,
  workdir: Path,
  *,
  config: str = '',
  listener: Listener | None = None,
  skip_preflight: bool = False,
  finish: Callable[[State], None] = lambda state: None,
) -> Outcome:
  """Runs an experiment, or goes on with it.

  Args:
    experiment: the run.
    workdir: where everything is written; a run that is found there is resumed.
    config: the configuration in force, as text: a run is resumed with its own only.
    listener: who listens.
    skip_preflight: begin without the dry step of every stage.
    finish: what is made of the last state, e.g. a folder with the student; the workdir is still locked.
  """
  listener = listener or Listener()
  inspection.check_startable(experiment)
  workdirs.prepare(workdir)
  with workdirs.locked(workdir):
    begun = (workdir / 'checkpoints').exists()  # then its rows have been read
    listener.findings(
      inspection.check(experiment, listener.say, workdir=workdir, every_row=not begun)
    )
    outcome = _run(experiment, workdir, config, listener, skip_preflight)
    if outcome.finished or outcome.stopped:
      finish(outcome.state)
    return outcome


def _run(
  experiment: Experiment, workdir: Path, config: str, listener: Listener, skip_preflight: bool
) -> Outcome:
  """From the newest checkpoint to the end, or to an interruption."""
  checkpointer = Checkpointer(
    workdir,
    config=config,
    keep=experiment.checkpoints_kept,
    every=experiment.checkpoint_every,
    say=listener.say,
  )
  try:
    with workdirs.interrupts() as interrupted:
      restored = _restored(experiment, checkpointer, listener.say)
      recorder = _recorder(experiment, workdir, config, restored, listener.say)
      first = None
      if experiment.geometry:
        first = geometry.copy_of(starting_point(experiment, restored[0].base, listener.say))
      run = Run(
        experiment, workdir, recorder, checkpointer, listener, interrupted, skip_preflight, first
      )
      try:
        return _stages(run, *restored)
      finally:
        recorder.close()
  finally:
    checkpointer.close()


def _restored(experiment: Experiment, checkpointer: Checkpointer, say) -> tuple[State, RunPosition]:
  """Where the newest checkpoint stands, or the very beginning."""
  last = len(experiment.stages) - 1
  stage_at = lambda position: experiment.stages[min(position.stage, last)]
  restored = checkpointer.restore(lambda position: abstract_state(experiment, stage_at(position)))
  if restored is None:
    base, params = begin(experiment, say)
    return initial_state(experiment, experiment.stages[0], params, base), RunPosition()
  say(f'resumed at step {restored.position.step} of {experiment.steps}')
  return state_of(restored, experiment, say), restored.position


def _recorder(
  experiment: Experiment, workdir: Path, config: str, restored, say: Callable[[str], None]
) -> Recorder:
  chief, position = jax.process_index() == 0, restored[1]
  if chief:
    (workdir / 'config.gin').write_text(config)
  begin = position.step if position != RunPosition() else -1
  return Recorder(workdir, begin=begin, is_writer=chief, wandb=experiment.wandb, say=say)


def _stages(run: Run, state: State, position: RunPosition) -> Outcome:
  """One stage after the other."""
  stages = run.experiment.stages
  while position.stage < len(stages):
    runtime = build_runtime(run.experiment, position.stage, run.listener.say)
    outcome = _stage(run, runtime, state, position)
    if not outcome.finished:
      return outcome
    del runtime
    gc.collect()  # judges of this stage leave before those of the next come
    state, position = outcome.state, outcome.position
    position = RunPosition(stage=position.stage + 1, step=position.step, rows=position.rows)
    if position.stage < len(stages):
      state = initial_state(run.experiment, stages[position.stage], state.params, state.base)
    run.checkpointer.save(state, position)
  run.checkpointer.finish()
  return Outcome(state, position, finished=True)


def _stage(run: Run, runtime: StageRuntime, state: State, position: RunPosition) -> Outcome:
  """The steps of a stage that are left."""
  experiment, stream = run.experiment, runtime.stream()
  if position.stream is not None:
    stream.restore(position.stream)
  if position.stage_step == 0 and not run.skip_preflight:
    state = preflight.check(runtime, stream, state, position, run.listener.say)
  evaluations = Evaluations(experiment, runtime, run.recorder, run.first)
  if position.step == 0:
    state, position = _evaluated(run, runtime, evaluations, state, position, all_of_them=True)
  is_over = lambda position: (
    position.stage_step == runtime.stage.steps
    or stopping.met(runtime.stage.stops, position.stops) is not None
  )
  while not is_over(position):
    state, position, row = one_step(run, runtime, stream, state, position)
    run.listener.progress(position.step, experiment.steps, pace(runtime.stage.name, row))
    last, step = is_over(position), position.step
    state, position = _evaluated(run, runtime, evaluations, state, position, all_of_them=last)
    if step % run.checkpointer.every == 0 and not is_over(position):
      run.checkpointer.save(state, position)
    if any_process(run.interrupted()):
      run.checkpointer.save(state, position)
      run.checkpointer.finish()
      run.listener.say(f'interrupted and saved at step {step}; run the same command to go on')
      return Outcome(state, position, finished=False)
  return _ended(run, runtime, state, position)


def _ended(run: Run, runtime: StageRuntime, state: State, position: RunPosition) -> Outcome:
  """How a stage ended: with its last step, or by a rule, which may stop the run."""
  rule = stopping.met(runtime.stage.stops, position.stops)
  if rule is None:
    return Outcome(state, position, finished=True)
  name = runtime.stage.name
  text = stopping.explained(rule, position.stops, stage=name, step=position.step)
  run.listener.say(text)
  if rule.ends == 'stage':
    return Outcome(state, position, finished=True)
  run.checkpointer.save(state, position)
  run.checkpointer.finish()
  return Outcome(state, position, finished=False, stopped=text)


def one_step(
  run: Run, runtime: StageRuntime, stream: Stream | Curriculum, state: State, position: RunPosition
) -> tuple[State, RunPosition, Mapping[str, Any]]:
  """One batch of rollouts, from the question to the new weights, and the metrics of it."""
  watch, weights = Stopwatch(), state.weights
  with watch('sample'):
    responses = verbs.sample(runtime, weights, runtime.take(stream, position), position)
  with watch('score'):
    evidence = verbs.score(runtime, weights, responses, position, state.memory)
    evidence = jax.block_until_ready(evidence)
  with watch('weigh'):
    batch, survey = jax.block_until_ready(verbs.weigh(runtime, weights, evidence))
  with watch('update'):
    seen = probing.probed(runtime, state, batch, position)
    state, row = verbs.updates(runtime, state, responses, evidence, batch, position)
    state, shocks = following.after_update(runtime, state, evidence, position)
  step, name = position.step + 1, runtime.stage.name
  row = {'step': step, 'stage': name, **row, **seen, **shocks}
  row |= jax.tree.map(float, jax.device_get(survey))
  row |= metrics.of_rollout(responses.rollout, step=position.step)
  row |= {**metrics.of_routes(responses.problems), 'skipped': stream.skipped}
  row |= moving.shown(runtime.moving, position.moving)
  row |= {
    **watch.seconds,
    'time/tokens_per_s': row['tokens'] / watch.total,
    'time/compiles': optimiser_step.compiled_programs(),
  }
  after = position.after(len(responses.problems))._replace(stream=stream.state())
  moved = following.after_row(runtime, state, after, row)
  row |= moved.seen
  run.recorder.row(row)
  step_records.record_texts(runtime, run.recorder, responses, evidence, batch, position)
  alarms = step_records.alarms(runtime, run.workdir, row, position, batch)
  return moved.state, moved.position._replace(alarms=alarms), row


def _evaluated(
  run: Run,
  runtime: StageRuntime,
  evaluations: Evaluations,
  state: State,
  position: RunPosition,
  *,
  all_of_them: bool,
) -> tuple[State, RunPosition]:
  """Runs the evaluations that are due, or all, records them, and lets judges and numbers follow what they found."""
  row = evaluations.run(state, position, all_of_them=all_of_them)
  if not row:
    return state, position
  moved = following.after_row(runtime, state, position, row)
  run.recorder.row({'step': position.step, 'stage': runtime.stage.name, **row, **moved.seen})
  return moved.state, moved.position
