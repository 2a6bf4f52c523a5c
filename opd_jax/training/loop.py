"""Floor 5. The run, from top to bottom: stages, and in each of them sample, score, weigh, update.

The same call resumes: everything that moves is in the checkpoint, so a run that was killed anywhere ends with the same
numbers as one that was not.
"""

import gc
import time
from collections.abc import Callable

import jax

from opd_jax.judges.client import Ended
from opd_jax.processes import largest
from opd_jax.storage.places import Place
from opd_jax.training import (
  following,
  inspection,
  preflight,
  profiling,
  served_models,
  stopping,
)
from opd_jax.training import workdir as workdirs
from opd_jax.training.evaluations import Evaluations
from opd_jax.training.experiment import Experiment
from opd_jax.training.opening import opened
from opd_jax.training.pipeline import Flight, Pipeline
from opd_jax.training.run import Asked, Listener, Outcome, Run
from opd_jax.training.runtime import StageRuntime, build_runtime
from opd_jax.training.state import RunPosition, State, initial_state
from opd_jax.training.step import one_step


def train(
  experiment: Experiment,
  workdir: Place,
  *,
  config: str = '',
  listener: Listener | None = None,
  skip_preflight: bool = False,
  extend: bool = False,
  profile: range | None = None,
  finish: Callable[[State], None] = lambda state: None,
) -> Outcome:
  """Runs an experiment, or goes on with it.

  Args:
    experiment: the run.
    workdir: where everything is written; a run that is found there is resumed.
    config: the configuration in force, as text: a run is resumed with its own only, see `resuming`.
    listener: who listens.
    skip_preflight: begin without the dry step of every stage.
    extend: the last stage may have more steps than when the run began.
    profile: steps that are traced, see `profiling`.
    finish: what is made of the last state, e.g. a folder with the student; the workdir is still locked.
  """
  listener = listener or Listener()
  asked = Asked(config, skip_preflight, extend, profile)
  inspection.check_startable(experiment)
  profiling.check(profile, last=experiment.steps)
  workdirs.prepare(workdir)
  with workdirs.locked(workdir, say=listener.say):
    begun = (workdir / 'checkpoints').exists()  # then its rows have been read
    listener.findings(
      inspection.check(
        experiment, listener.say, workdir=workdir, every_row=not begun, status=listener.status
      )
    )
    with opened(experiment, workdir, asked, listener) as (run, state, position, flight):
      outcome = _stages(run, state, position, flight)
    if outcome.finished or outcome.stopped:
      finish(outcome.state)
    return outcome


def _stages(run: Run, state: State, position: RunPosition, flight: Flight) -> Outcome:
  """One stage after the other."""
  stages = run.experiment.stages
  while not _is_over(run.experiment, position):
    runtime = build_runtime(run.experiment, position.stage, run.listener.say)
    served_models.remember(runtime, run.spool.home, run.listener.say)
    outcome = _stage(run, runtime, state, position, flight)
    if not outcome.finished:
      return outcome
    del runtime
    gc.collect()  # judges of this stage leave before those of the next come
    state, position, flight = outcome.state, outcome.position, ()
    if position.stage + 1 < len(stages):
      position = RunPosition(stage=position.stage + 1, step=position.step, rows=position.rows)
      state = initial_state(run.experiment, stages[position.stage], state.params, state.base)
    run.save(state, position)
  run.checkpointer.finish()
  return Outcome(state, position)


def _is_over(experiment: Experiment, position: RunPosition) -> bool:
  """Whether the last stage has ended; it may be extended, so its position and its optimiser are kept."""
  last = len(experiment.stages) - 1
  if position.stage < last:
    return False
  rule = stopping.met(experiment.stages[last].stops, position.stops)
  ended = rule is not None and rule.ends == 'stage'
  return ended or position.stage > last or position.stage_step >= experiment.stages[last].steps


def _stage(
  run: Run, runtime: StageRuntime, state: State, position: RunPosition, flight: Flight
) -> Outcome:
  """The steps of a stage that are left."""
  stream = runtime.stream()
  if position.stream is not None:
    stream.restore(position.stream)
  if position.stage_step == 0 and not run.skip_preflight:
    state, example = preflight.check(runtime, stream, state, position, run.listener.say)
    run.ahead.begin(runtime, state, example, position)
    del example
    run.listener.say(f'compiled before the first step: {run.count}')
  evaluations = Evaluations(run.experiment, runtime, run.recorder, run.first)
  if position.step == 0:
    state, position = _evaluated(run, runtime, evaluations, state, position, all_of_them=True)
  with Pipeline(runtime, stream, flight) as pipeline:
    return _steps(run, runtime, pipeline, evaluations, state, position)


def _steps(
  run: Run,
  runtime: StageRuntime,
  pipeline: Pipeline,
  evaluations: Evaluations,
  state: State,
  position: RunPosition,
) -> Outcome:
  is_over = lambda position: (
    position.stage_step == runtime.stage.steps
    or stopping.met(runtime.stage.stops, position.stops) is not None
  )
  while not is_over(position):
    try:
      with run.profiler.step(position.step + 1):
        state, position, row = one_step(run, runtime, pipeline, state, position)
    except Ended:  # before anything was learnt
      if jax.process_count() > 1:
        raise
      return _interrupted(run, pipeline, state, pipeline.give_back(position), run.interrupted())
    line = run.pace.line(row, now=time.monotonic())
    run.listener.progress(position.step, run.experiment.steps, line)
    last, step = is_over(position), position.step
    state, position = _evaluated(run, runtime, evaluations, state, position, all_of_them=last)
    if step % run.checkpointer.every == 0 and not is_over(position):
      run.save(state, position, pipeline.flight)
    if signal := largest(run.interrupted()):
      return _interrupted(run, pipeline, state, position, signal)
  return _ended(run, runtime, state, position)


def _interrupted(
  run: Run, pipeline: Pipeline, state: State, position: RunPosition, signal: int
) -> Outcome:
  """Keeps what was learnt."""
  run.save(state, position, pipeline.flight)
  run.checkpointer.finish()
  run.listener.say(f'interrupted and saved at step {position.step}; run the same command to go on')
  return Outcome(state, position, signal=signal)


def _ended(run: Run, runtime: StageRuntime, state: State, position: RunPosition) -> Outcome:
  """How a stage ended: with its last step, or by a rule, which may stop the run."""
  rule = stopping.met(runtime.stage.stops, position.stops)
  if rule is None:
    return Outcome(state, position)
  name = runtime.stage.name
  text = stopping.explained(rule, position.stops, stage=name, step=position.step)
  run.listener.say(text)
  if rule.ends == 'stage':
    return Outcome(state, position)
  run.save(state, position)
  run.checkpointer.finish()
  return Outcome(state, position, stopped=text)


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
  with jax.profiler.TraceAnnotation('evaluate'):
    row = evaluations.run(state, position, all_of_them=all_of_them)
  if not row:
    return state, position
  run.pace.evaluated(row)
  moved = following.after_row(runtime, state, position, row)
  run.recorder.row({'step': position.step, 'stage': runtime.stage.name, **row, **moved.seen})
  run.spool.send()
  return moved.state, moved.position
