"""Floor 6. Runs a study: workers make its runs, each with the training command, and can be killed at any moment."""

import os
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from opd_jax.studies import folder, measures, training_command, workers
from opd_jax.studies.ledger import DONE, FAILED, PROVENANCE, STUDENT, Ledger, Run
from opd_jax.training import recorder
from opd_jax.training.workdir import interrupts

LOG, REFUSAL = 'log.txt', 'opd train: '
PAUSE = 0.1  # seconds between two looks at the workers


class _Task(NamedTuple):
  worker: workers.Worker
  command: list[str]
  began: float
  resumed: bool
  said: int  # bytes that earlier calls have left in the log


class Runner:
  """Runs what is ready, a few at a time.

  Args:
    ledger: the study, and what is done of it.
    file: of the study; gin files are looked for from it.
    lock: a descriptor that workers inherit.
    origin: of the provenance files.
    flags: further ones of the training command.
  """

  worker = workers.COMMAND

  def __init__(
    self,
    ledger: Ledger,
    file: Path,
    *,
    lock: int,
    origin: Mapping[str, Any],
    flags: tuple[str, ...] = (),
  ):
    self.ledger, self.file, self.lock = ledger, file, lock
    self.origin, self.flags = origin, flags
    self.working: dict[Run, _Task] = {}
    self.idle: list[workers.Worker] = []
    self.shares: list[list[int] | None] = []  # of the cores, that no worker has
    cache = {
      'JAX_COMPILATION_CACHE_DIR': str(ledger.root.resolve() / 'cache'),
      'JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS': '0',
    }
    self.environment = {**cache, **os.environ}

  def run(
    self, *, jobs: int, say: Callable[[str], None], progress: Callable[[int, int, str], None]
  ) -> bool:
    """To the end of what can be done (True), or until somebody asks it to stop (False)."""
    total = sum(self.ledger.total().values())
    self.shares = workers.shares(jobs)
    try:
      with interrupts() as asked:
        done = self._fill(jobs)
        while not asked():
          if self._reap(say):
            done = self._fill(jobs)
          if not self.working:
            return True
          progress(done, total, ', '.join(map(str, self.working)))
          time.sleep(PAUSE)
      return False
    finally:
      self._stop()

  def _fill(self, jobs: int) -> int:
    """Begins what is ready while there is room; returns how many runs are done."""
    survey = self.ledger.survey()
    ready = [run for run in survey.ready if run not in self.working]
    while ready and len(self.working) < jobs:
      run = min(ready, key=self._companions)  # of equals the first
      ready.remove(run)
      self._begin(run)
    return len(survey.done)

  def _companions(self, run: Run) -> int:
    """Runs of the same cell that are at work: beginning together, they would all compile the same programs."""
    return sum(other.cell == run.cell for other in self.working)

  def command(self, run: Run) -> list[str]:
    """The training command of a run."""
    students = self.ledger.students(run)
    words = training_command.words(
      run.cell,
      run.seed,
      files=[str(path) for path in folder.gin_paths(run.cell.files, self.file)],
      students={name: student.resolve() for name, student in students.items()},
      rate=None if run.rate is None else repr(run.rate),
      workdir=self.ledger.folder(run).resolve(),
    )
    return ['opd', *words, *self.flags]

  def _begin(self, run: Run) -> None:
    where = self.ledger.folder(run)
    where.mkdir(parents=True, exist_ok=True)
    resumed, command = (where / LOG).exists(), self.command(run)
    said = (where / LOG).stat().st_size if resumed else 0
    (where / LOG).touch()
    began = time.monotonic()
    worker = self._free()
    worker.begin(command[1:], where / LOG)
    self.working[run] = _Task(worker, command, began, resumed, said)

  def _free(self) -> workers.Worker:
    """A worker without a task; a new one where none is left."""
    while self.idle:
      if (worker := self.idle.pop()).is_alive():
        return worker
      self.shares.append(worker.cores)
    return workers.Worker(
      lock=self.lock,
      environment=self.environment,
      command=self.worker,
      cores=self.shares.pop(),
    )

  def _reap(self, say: Callable[[str], None]) -> bool:
    """Files the runs that have ended; says whether there was one."""
    before = len(self.working)
    for run, task in list(self.working.items()):
      if (status := task.worker.status()) is None:
        continue
      del self.working[run]
      self.idle.append(task.worker)
      try:
        self._check(run, status, task.said)
        self._finish(run, task)
      except ValueError as error:
        why = {'run': str(run), 'why': str(error)}
        folder.write_atomically(self.ledger.folder(run) / FAILED, why)
        say(f'{run} failed: {error}')
    return len(self.working) < before

  def _check(self, run: Run, status: int, said: int) -> None:
    where = self.ledger.folder(run)
    if status or not (where / STUDENT).is_dir():
      lines = (where / LOG).read_bytes()[said:].decode(errors='replace').strip().splitlines()
      refusals = [line for line in lines if line.startswith(REFUSAL)]
      last = (refusals or lines or ['it said nothing'])[-1][:500]
      ended = f'exit status {status}' if status else 'it was stopped'
      raise ValueError(f'{ended}: {last} ({where / LOG})')
    if run in self.ledger.trials(run.cell):
      measures.value_of(where, self.ledger.study.measure(None))

  def _finish(self, run: Run, task: _Task) -> None:
    where, seconds = self.ledger.folder(run), time.monotonic() - task.began
    tokens = sum(row.get('tokens', 0) for row in recorder.read(where))
    told = {'command': task.command, **self.origin, 'seconds': round(seconds, 1)}
    told |= {'resumed': task.resumed, 'tokens': tokens}
    folder.write_atomically(where / PROVENANCE, told)
    folder.write_atomically(where / DONE, {'run': str(run)})

  def _stop(self) -> None:
    """Asks the workers to save and to end."""
    everybody = [*self.idle, *(task.worker for task in self.working.values())]
    for worker in everybody:
      worker.terminate()
    for worker in everybody:
      worker.wait()
