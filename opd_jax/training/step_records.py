"""Floor 5. What a step leaves behind to look at: texts, responses token by token, the batch that rang an alarm."""

from collections.abc import Mapping
from typing import Any

from opd_jax.judges.reading import texts_shown
from opd_jax.method import Evidence
from opd_jax.responses import Responses
from opd_jax.storage.places import Spool
from opd_jax.training.alarms import Alarm, Bounds, check_alarms
from opd_jax.training.gradient import Batch
from opd_jax.training.recorder import Recorder, save_batch, texts_record
from opd_jax.training.rollout_records import RolloutRecords, record_of
from opd_jax.training.runtime import StageRuntime
from opd_jax.training.state import RunPosition


def record_texts(
  runtime: StageRuntime,
  recorder: Recorder,
  responses: Responses,
  evidence: Evidence,
  batch: Batch,
  position: RunPosition,
) -> None:
  """Texts of a batch, and responses token by token, where a record of them is due.

  Args:
    position: before the step.
  """
  name, experiment, step = runtime.stage.name, runtime.experiment, position.step + 1
  settings = experiment.rollouts
  if step % experiment.samples_every == 0 or step == 1:
    recorder.samples(texts_record(responses, step, name))
  if settings is not None and settings.is_due(step):
    rows = record_of(
      responses,
      evidence,
      batch.terms,
      runtime.tokenizer,
      settings,
      step=step,
      stage=name,
      shown=_shown(runtime, responses, position, settings),
    )
    recorder.rollouts(rows, mib=settings.mib)


def _shown(
  runtime: StageRuntime, responses: Responses, position: RunPosition, settings: RolloutRecords
) -> list[dict[str, str | None]]:
  """What judges with a context read of the rows that are kept."""
  scenes = runtime.scenes(responses, position)[: settings.rows]
  shown: list[dict[str, str | None]] = [{} for _ in scenes]
  for name, judge in runtime.judges.items():
    texts = texts_shown(name, judge, scenes, runtime.tokenizer, most=settings.context)
    shown = [one | other for one, other in zip(shown, texts, strict=True)]
  return shown


def alarms(
  bounds: Bounds,
  spool: Spool,
  row: Mapping[str, Any],
  position: RunPosition,
  batch: Batch,
) -> dict[str, float]:
  """What the alarms remember after a step; where one rings, the batch is kept."""
  try:
    return check_alarms(row, position.alarms or {}, bounds)
  except Alarm as alarm:
    file = save_batch(batch, spool.folder, row['step'])
    raise Alarm(
      f'{alarm}. The batch lies in {spool.home / file.name}; no later checkpoint was written.'
    ) from alarm
