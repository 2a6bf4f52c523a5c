"""Floor 5. What the parts of a run share, who listens to it, and how a call of it ends."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from opd_jax.programs import Count
from opd_jax.storage.places import Spool
from opd_jax.training import inspection, step_records
from opd_jax.training.advice import advise
from opd_jax.training.ahead import Ahead
from opd_jax.training.checkpoints import Checkpointer
from opd_jax.training.experiment import Experiment
from opd_jax.training.gradient import Batch
from opd_jax.training.pace import Pace
from opd_jax.training.pipeline import Flight
from opd_jax.training.profiling import Profiler
from opd_jax.training.recorder import Recorder
from opd_jax.training.state import RunPosition, State
from opd_jax.types import Params


class Listener(NamedTuple):
  """Who listens to a run."""

  say: Callable[[str], None] = print
  progress: Callable[[int, int, str], None] = lambda done, total, text: None
  status: Callable[[str], None] = lambda text: (
    None
  )  # what is waited for; the next one takes its place
  findings: Callable[[Sequence[inspection.Finding]], None] = lambda findings: None  # before step 0


class Asked(NamedTuple):
  """What a call asks for besides the experiment; see `loop.train`."""

  config: str = ''
  skip_preflight: bool = False
  extend: bool = False
  profile: range | None = None


class Outcome(NamedTuple):
  """How a call ended."""

  state: State
  position: RunPosition
  signal: int = 0  # that interrupted the run, which was saved
  stopped: str = ''  # why a rule of a stage stopped the run, which was saved; '' where none did

  @property
  def finished(self) -> bool:
    return not self.signal and not self.stopped


class Run(NamedTuple):
  """What the parts of a run share."""

  experiment: Experiment
  spool: Spool  # of what grows
  recorder: Recorder
  checkpointer: Checkpointer
  listener: Listener
  interrupted: Callable[[], int]  # the signal that asked the run to end, or 0
  skip_preflight: bool
  first: Params | None  # where geometry is wanted: the weights that it began with, on the host
  count: Count  # of programs
  ahead: Ahead
  pace: Pace
  profiler: Profiler

  def save(self, state: State, position: RunPosition, flight: Flight = ()) -> None:
    """Begins to write a checkpoint; its metrics are there before it is, so that whoever goes on from it finds them."""
    self.spool.send()
    self.checkpointer.save(state, position, flight)


def watched(
  run: Run, row: Mapping[str, Any], position: RunPosition, batch: Batch
) -> dict[str, float]:
  """What alarms and advice remember behind a step; an alarm stops the run, advice is said."""
  memory = step_records.alarms(run.experiment.bounds, run.spool, row, position, batch)
  memory, advice = advise(row, memory)
  for text in advice:
    run.listener.say(text)
  return memory
