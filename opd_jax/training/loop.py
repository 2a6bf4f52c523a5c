"""Floor 5. The run, from top to bottom: stages, and in each of them sample, score, weigh, update.

The same call resumes: everything that moves is in the checkpoint, so a run that was killed anywhere ends with the same
numbers as one that was not.
"""

import gc
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax

from opd_jax.data.curriculum import Curriculum
from opd_jax.data.stream import Stream
from opd_jax.evaluation import geometry
from opd_jax.processes import largest
from opd_jax.programs import counted
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
from opd_jax.training.ahead import Ahead
from opd_jax.training.checkpoints import Checkpointer, state_of
from opd_jax.training.evaluations import Evaluations
from opd_jax.training.experiment import Experiment
from opd_jax.training.pace import Pace, Stopwatch
from opd_jax.training.recorder import Recorder
from opd_jax.training.resuming import Plan
from opd_jax.training.run import Listener, Outcome, Run, watched
from opd_jax.training.runtime import StageRuntime, build_runtime
from opd_jax.training.shapes import Example
from opd_jax.training.state import (
  RunPosition,
  State,
  abstract_state,
  begin,
  initial_state,
  starting_point,
)


def train(
  experiment: Experiment,
  workdir: Path,
  *,
  config: str = '',
  listener: Listener | None = None,
  skip_preflight: bool = False,
  extend: bool = False,
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
    outcome = _run(
      experiment, workdir, config, listener, skip_preflight=skip_preflight, extend=extend
    )
    if outcome.finished or outcome.stopped:
      finish(outcome.state)
    return outcome


def _run(
  experiment: Experiment,
  workdir: Path,
  config: str,
  listener: Listener,
  *,
  skip_preflight: bool,
  extend: bool,
) -> Outcome:
  """From the newest checkpoint to the end, or to an interruption."""
  checkpointer = Checkpointer(
    workdir,
    plan=Plan(config, [stage.steps for stage in experiment.stages]),
    extend=extend,
    keep=experiment.checkpoints_kept,
    every=experiment.checkpoint_every,
    say=listener.say,
  )
  try:
    with (
      workdirs.interrupts() as interrupted,
      counted(lambda count: listener.compiling(f'compiling: {count}')) as count,
      Ahead(listener.compiling) as ahead,
    ):
      restored = _restored(experiment, checkpointer, listener.say)
      recorder = _recorder(experiment, workdir, config, restored, listener.say)
      first = None
      if experiment.geometry:
        first = geometry.copy_of(starting_point(experiment, restored[0].base, listener.say))
      run = Run(
        experiment=experiment,
        workdir=workdir,
        recorder=recorder,
        checkpointer=checkpointer,
        listener=listener,
        interrupted=interrupted,
        skip_preflight=skip_preflight,
        first=first,
        count=count,
        ahead=ahead,
        pace=Pace(experiment.steps),
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
  while not _is_over(run.experiment, position):
    runtime = build_runtime(run.experiment, position.stage, run.listener.say)
    outcome = _stage(run, runtime, state, position)
    if not outcome.finished:
      return outcome
    del runtime
    gc.collect()  # judges of this stage leave before those of the next come
    state, position = outcome.state, outcome.position
    if position.stage + 1 < len(stages):
      position = RunPosition(stage=position.stage + 1, step=position.step, rows=position.rows)
      state = initial_state(run.experiment, stages[position.stage], state.params, state.base)
    run.checkpointer.save(state, position)
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


def _stage(run: Run, runtime: StageRuntime, state: State, position: RunPosition) -> Outcome:
  """The steps of a stage that are left."""
  experiment, stream = run.experiment, runtime.stream()
  if position.stream is not None:
    stream.restore(position.stream)
  if position.stage_step == 0 and not run.skip_preflight:
    state, example = preflight.check(runtime, stream, state, position, run.listener.say)
    run.ahead.begin(runtime, state, example, position)
    del example
    run.listener.say(f'compiled before the first step: {run.count}')
  evaluations = Evaluations(experiment, runtime, run.recorder, run.first)
  if position.step == 0:
    state, position = _evaluated(run, runtime, evaluations, state, position, all_of_them=True)
  is_over = lambda position: (
    position.stage_step == runtime.stage.steps
    or stopping.met(runtime.stage.stops, position.stops) is not None
  )
  while not is_over(position):
    state, position, row = one_step(run, runtime, stream, state, position)
    line = run.pace.line(row, now=time.monotonic())
    run.listener.progress(position.step, experiment.steps, line)
    last, step = is_over(position), position.step
    state, position = _evaluated(run, runtime, evaluations, state, position, all_of_them=last)
    if step % run.checkpointer.every == 0 and not is_over(position):
      run.checkpointer.save(state, position)
    if signal := largest(run.interrupted()):
      run.checkpointer.save(state, position)
      run.checkpointer.finish()
      run.listener.say(f'interrupted and saved at step {step}; run the same command to go on')
      return Outcome(state, position, signal=signal)
  return _ended(run, runtime, state, position)


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
  run.checkpointer.save(state, position)
  run.checkpointer.finish()
  return Outcome(state, position, stopped=text)


def one_step(
  run: Run, runtime: StageRuntime, stream: Stream | Curriculum, state: State, position: RunPosition
) -> tuple[State, RunPosition, Mapping[str, Any]]:
  """One batch of rollouts, from the question to the new weights, and the metrics of it."""
  watch, weights, waited = Stopwatch(), state.weights, run.count.waited
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
    'time/compiling': run.count.waited - waited,
  }
  after = position.after(len(responses.problems))._replace(stream=stream.state())
  moved = following.after_row(runtime, state, after, row)
  row |= moved.seen
  run.recorder.row(row)
  if not run.skip_preflight:  # a resumed run has no dry step
    run.ahead.begin(runtime, state, Example(responses, evidence, batch), position)
  step_records.record_texts(runtime, run.recorder, responses, evidence, batch, position)
  alarms = watched(run, row, position, batch)
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
  run.pace.evaluated(row)
  moved = following.after_row(runtime, state, position, row)
  run.recorder.row({'step': position.step, 'stage': runtime.stage.name, **row, **moved.seen})
  return moved.state, moved.position
