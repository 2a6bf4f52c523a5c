"""Floor 5. What the parts of a run share, who listens to it, and how a call of it ends."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from opd_jax.method import Evidence
from opd_jax.programs import Count
from opd_jax.responses import Responses
from opd_jax.training.advice import advise
from opd_jax.training.ahead import Ahead
from opd_jax.training.alarms import Alarm, check_alarms
from opd_jax.training.checkpoints import Checkpointer
from opd_jax.training.experiment import Experiment
from opd_jax.training.gradient import Batch
from opd_jax.training.pace import Pace
from opd_jax.training.recorder import Recorder, save_batch, texts_record
from opd_jax.training.rollout_records import record_of
from opd_jax.training.runtime import StageRuntime
from opd_jax.training.state import RunPosition, State
from opd_jax.types import Params


class Listener(NamedTuple):
  """Who listens to a run."""

  say: Callable[[str], None] = print
  progress: Callable[[int, int, str], None] = lambda done, total, text: None
  compiling: Callable[[str], None] = lambda text: None


class Outcome(NamedTuple):
  """How a call ended."""

  state: State
  position: RunPosition
  signal: int = 0  # that interrupted the run, which was saved; 0: it is finished

  @property
  def finished(self) -> bool:
    return not self.signal


class Run(NamedTuple):
  """What the parts of a run share."""

  experiment: Experiment
  workdir: Path
  recorder: Recorder
  checkpointer: Checkpointer
  listener: Listener
  interrupted: Callable[[], int]  # the signal that asked the run to end, or 0
  skip_preflight: bool
  first: Params | None  # where geometry is wanted: the weights that it began with, on the host
  count: Count  # of programs
  ahead: Ahead
  pace: Pace


def record_texts(
  run: Run,
  runtime: StageRuntime,
  responses: Responses,
  evidence: Evidence,
  batch: Batch,
  step: int,
) -> None:
  """Texts of a batch, and responses token by token, where a record of them is due."""
  name, settings = runtime.stage.name, run.experiment.rollouts
  if step % run.experiment.samples_every == 0 or step == 1:
    run.recorder.samples(texts_record(responses, step, name))
  if settings is not None and settings.is_due(step):
    rows = record_of(
      responses, evidence, batch.terms, runtime.tokenizer, settings, step=step, stage=name
    )
    run.recorder.rollouts(rows, mib=settings.mib)


def watched(
  run: Run, row: Mapping[str, Any], position: RunPosition, batch: Batch
) -> dict[str, float]:
  """What alarms and advice remember behind a step; an alarm stops the run, advice is said."""
  try:
    memory = check_alarms(row, position.alarms or {}, run.experiment.bounds)
  except Alarm as alarm:
    file = save_batch(batch, run.workdir, row['step'])
    raise Alarm(f'{alarm}. The batch lies in {file}; no later checkpoint was written.') from alarm
  memory, advice = advise(row, memory)
  for text in advice:
    run.listener.say(text)
  return memory
