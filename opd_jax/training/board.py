"""Floor 5. The numbers of a run for TensorBoard.

They are written by whoever calls. The writer that tensorboardX offers hands them to a thread of its own, and a run
waits for ever where a full disk has ended that.
"""

import importlib
import math
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any


class Board:
  """A file of events.

  Args:
    folder: where TensorBoard looks.
    begin: the step behind which a run goes on; what earlier files have behind it is not shown.
  """

  def __init__(self, folder: Path, *, begin: int):
    library = lambda name: importlib.import_module(f'tensorboardX.{name}')
    self._scalar = library('summary').scalar
    self._events: Any = library('proto.event_pb2')
    self._summary: Any = library('proto.summary_pb2').Summary
    folder.mkdir(parents=True, exist_ok=True)
    self._file = library('event_file_writer').EventsWriter(str(folder / 'events'))
    again = self._events.SessionLog(status=self._events.SessionLog.START)
    self._write(begin + 1, session_log=again)

  def _write(self, step: int, **content: Any) -> None:
    self._file.write_event(self._events.Event(step=step, wall_time=time.time(), **content))
    self._file.flush()

  def row(self, row: Mapping[str, float | int], *, step: int) -> None:
    """The finite numbers of a step."""
    parts = [self._scalar(name, x) for name, x in row.items() if math.isfinite(x)]
    values = [value for part in parts for value in part.value]
    self._write(step, summary=self._summary(value=values))

  def close(self) -> None:
    self._file.close()
