"""Floor 5. Opens a run: its checkpoints, its records, where it stands; and closes them however it ends."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import jax

from opd_jax.evaluation import geometry
from opd_jax.programs import counted
from opd_jax.storage import places
from opd_jax.storage.places import Place, Spool
from opd_jax.training import workdir as workdirs
from opd_jax.training.ahead import Ahead
from opd_jax.training.checkpoints import Checkpointer, state_of
from opd_jax.training.experiment import Experiment
from opd_jax.training.pace import Pace
from opd_jax.training.pipeline import Flight
from opd_jax.training.profiling import Profiler
from opd_jax.training.recorder import FILES, Recorder
from opd_jax.training.resuming import Plan
from opd_jax.training.run import Asked, Listener, Run
from opd_jax.training.state import (
  RunPosition,
  State,
  abstract_state,
  begin,
  initial_state,
  starting_point,
)
from opd_jax.types import Params


@contextmanager
def opened(
  experiment: Experiment, workdir: Place, asked: Asked, listener: Listener
) -> Iterator[tuple[Run, State, RunPosition, Flight]]:
  """A run with the state, the place and the batches that it goes on from: the newest checkpoint, or the beginning."""
  checkpointer = Checkpointer(
    workdir,
    plan=Plan(asked.config, [stage.steps for stage in experiment.stages]),
    extend=asked.extend,
    keep=experiment.checkpoints_kept,
    every=experiment.checkpoint_every,
    say=listener.say,
  )
  try:
    with (
      places.spooled(workdir, FILES if jax.process_index() == 0 else ()) as spool,
      workdirs.interrupts() as interrupted,
      counted(lambda count: listener.status(f'compiling: {count}')) as count,
      Ahead(listener.status) as ahead,
    ):
      state, position, flight = _restored(experiment, checkpointer, listener.say)
      profiler = Profiler(spool, asked.profile, listener.say)
      profiler.begin(position.step)
      recorder = _recorder(experiment, spool, asked.config, position, listener.say)
      run = Run(
        experiment=experiment,
        spool=spool,
        recorder=recorder,
        checkpointer=checkpointer,
        listener=listener,
        interrupted=interrupted,
        skip_preflight=asked.skip_preflight,
        first=_first(experiment, state, listener.say),
        count=count,
        ahead=ahead,
        pace=Pace(experiment.steps),
        profiler=profiler,
      )
      try:
        yield run, state, position, flight
      finally:
        profiler.close()
        recorder.close()
  finally:
    checkpointer.close()


def _restored(
  experiment: Experiment, checkpointer: Checkpointer, say: Callable[[str], None]
) -> tuple[State, RunPosition, Flight]:
  """Where the newest checkpoint stands, or the very beginning."""
  last = len(experiment.stages) - 1
  stage_at = lambda position: experiment.stages[min(position.stage, last)]
  restored = checkpointer.restore(lambda position: abstract_state(experiment, stage_at(position)))
  if restored is None:
    base, params = begin(experiment, say)
    return initial_state(experiment, experiment.stages[0], params, base), RunPosition(), ()
  say(f'resumed at step {restored.position.step} of {experiment.steps}')
  return state_of(restored, experiment, say), restored.position, restored.flight


def _first(experiment: Experiment, state: State, say: Callable[[str], None]) -> Params | None:
  """Where geometry is wanted, the weights that the run began with."""
  if not experiment.geometry:
    return None
  return geometry.copy_of(starting_point(experiment, state.base, say))


def _recorder(
  experiment: Experiment,
  spool: Spool,
  config: str,
  position: RunPosition,
  say: Callable[[str], None],
) -> Recorder:
  chief = jax.process_index() == 0
  if chief:
    (spool.folder / 'config.gin').write_text(config)
  begin = position.step if position != RunPosition() else -1
  return Recorder(
    spool.folder, home=spool.home, begin=begin, is_writer=chief, wandb=experiment.wandb, say=say
  )
