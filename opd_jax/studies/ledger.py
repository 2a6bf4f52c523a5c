"""Floor 6. Which runs a study has, which are done, and which can begin."""

import json
import statistics
from pathlib import Path
from typing import NamedTuple

from opd_jax.studies import measures
from opd_jax.studies.study import Cell, Study, chosen_among

DONE, FAILED, PROVENANCE = 'done.json', 'failed.json', 'provenance.json'
STUDENT = 'student'  # the model of a finished run, in its folder


class Run(NamedTuple):
  """A call of the training command."""

  cell: Cell
  rate: float | None  # None: what the files say
  seed: int

  def __str__(self) -> str:
    rate = '' if self.rate is None else f' rate {self.rate:g}'
    return f'{self.cell.name}{rate} seed {self.seed}'


class NotYet(Exception):
  """Something must be done before."""


class Never(Exception):
  """Something that must be done before has failed."""


class Ledger:
  """A study and the runs of it that are there.

  Args:
    study: what is wanted.
    root: its folder.
  """

  def __init__(self, study: Study, root: Path):
    self.study, self.root = study, root
    self._done: set[Run] = set()
    self._rates: dict[Cell, float] = {}  # metrics are read once for a choice

  def folder(self, run: Run) -> Path:
    """Where a run works."""
    rate = 'default' if run.rate is None else repr(run.rate)
    return self.root / 'runs' / run.cell.name / rate / str(run.seed)

  def is_done(self, run: Run) -> bool:
    if run not in self._done and (self.folder(run) / DONE).exists():
      self._done.add(run)
    return run in self._done

  def has_failed(self, run: Run) -> bool:
    return (self.folder(run) / FAILED).exists()

  def failures(self) -> dict[str, str]:
    """Why runs have failed, by their names."""
    told = [json.loads(file.read_text()) for file in self._failed_files()]
    return {one['run']: one['why'] for one in told}

  def forget_failures(self) -> None:
    """Lets what has failed be tried again."""
    for file in self._failed_files():
      file.unlink()

  def _failed_files(self) -> list[Path]:
    return sorted(self.root.glob(f'runs/*/*/*/{FAILED}'))

  def trials(self, cell: Cell) -> list[Run]:
    """The runs that a rate is chosen by."""
    if not cell.is_tuned:
      return []
    return [Run(cell, rate, seed) for rate in cell.rates for seed in self.study.tuning_seeds]

  def seeds(self, cell: Cell) -> tuple[int, ...]:
    """Of the runs with the chosen rate; those for tuning only where somebody needs them."""
    if cell.seed is not None:
      return (cell.seed,)
    tunes = any(other.is_tuned for other in self.study.cells if self._comes_after(other, cell))
    return (*self.study.seeds, *(self.study.tuning_seeds if tunes and not cell.is_tuned else ()))

  def _comes_after(self, cell: Cell, other: Cell) -> bool:
    return other.name in cell.after or any(
      self._comes_after(self.study.cell(name), other) for name in cell.after
    )

  def rate(self, cell: Cell) -> float | None:
    """The rate of a cell's compared runs. A rate whose trials have failed is out of the choice."""
    if not cell.is_tuned:
      return cell.rates[0] if cell.rates else None
    if cell not in self._rates:
      for run in self.trials(cell):
        if not self.is_done(run) and not self.is_given_up(run):
          raise NotYet(f'{run} is not done')
      tried = self.tried(cell)
      if not tried:
        raise Never(f'no rate of {cell.name} could be tried')
      self._rates[cell] = chosen_among(tried, self.study.measure(cell.chosen_by))
    return self._rates[cell]

  def tried(self, cell: Cell) -> list[tuple[float, float]]:
    """Rates with the mean of their trials, of those rates whose trials are all done."""
    measure, tried = self.study.measure(cell.chosen_by), []
    for rate in cell.rates:
      runs = [run for run in self.trials(cell) if run.rate == rate]
      if runs and all(map(self.is_done, runs)):
        values = [measures.value_of(self.folder(run), measure) for run in runs]
        tried.append((rate, statistics.fmean(values)))
    return tried

  def run_of(self, cell: Cell, seed: int) -> Run:
    """The run of a cell that belongs to a seed."""
    return Run(cell, self.rate(cell), seed if cell.seed is None else cell.seed)

  def students(self, run: Run) -> dict[str, Path]:
    """The folders of the students that a run takes, when they are there."""
    students = {}
    for name in run.cell.after:
      before = self.run_of(self.study.cell(name), run.seed)
      if self.is_given_up(before):
        raise Never(f'it needs {before}')
      if not self.is_done(before):
        raise NotYet(f'{before} is not done')
      students[name] = self.folder(before) / STUDENT
    return students

  def is_given_up(self, run: Run) -> bool:
    """Whether it has failed, or what it needs has."""
    if self.has_failed(run):
      return True
    try:
      self.students(run)
    except NotYet:
      return False
    except Never:
      return True
    return False

  def survey(self) -> 'Survey':
    """All runs, by what can be done about them."""
    survey = Survey([], [], {})
    for cell in self.study.cells:
      wanted: list[Run] = [*self.trials(cell)]
      try:
        wanted += [self.run_of(cell, seed) for seed in self.seeds(cell)]
      except NotYet:
        pass
      except Never as error:
        survey.skipped[cell.name] = str(error)
      for run in dict.fromkeys(wanted):
        self._sort_in(survey, run)
    return survey

  def _sort_in(self, survey: 'Survey', run: Run) -> None:
    if self.is_done(run):
      survey.done.append(run)
    elif not self.has_failed(run):
      try:
        self.students(run)
        survey.ready.append(run)
      except NotYet:
        return
      except Never as error:
        survey.skipped[str(run)] = str(error)

  def total(self) -> dict[str, int]:
    """Runs of every cell when the study is complete."""
    return {c.name: len(self.trials(c)) + len(self.seeds(c)) for c in self.study.cells}

  def seconds(self, cell: Cell) -> list[float]:
    """What whole runs of a cell took; those that were interrupted do not say."""
    files = (self.root / 'runs' / cell.name).glob(f'*/*/{PROVENANCE}')
    told = [json.loads(file.read_text()) for file in files if (file.parent / DONE).exists()]
    return [one['seconds'] for one in told if not one['resumed']]


class Survey(NamedTuple):
  """The runs of a study: done, ready to begin, and skipped with the reason. The others must wait."""

  done: list[Run]
  ready: list[Run]
  skipped: dict[str, str]
