"""Floor 6. The commands of a study and what they cost: nothing is run, no weight is read, and no network is needed."""

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from opd_jax import configuration
from opd_jax.models.config import ModelConfig
from opd_jax.planning import cost
from opd_jax.planning.flops import Chip, Cost
from opd_jax.studies import folder, training_command
from opd_jax.studies.ledger import STUDENT, Ledger, Never, NotYet, Run
from opd_jax.studies.study import Cell
from opd_jax.training.experiment import Experiment


class Order(NamedTuple):
  """A run, in the words of a shell."""

  run: Run
  name: str
  words: tuple[str, ...]


class Price(NamedTuple):
  """Of a run. A cell that says its seconds is believed, others are counted from shapes."""

  hours: float | None  # of one device; None: nobody knows
  counted: Cost | None = None
  why: str = ''  # nobody knows


def orders(ledger: Ledger, file: Path) -> Iterator[Order]:
  """All runs, done or not; what a run needs is above it."""
  for cell in ledger.study.cells:
    files = [_from_here(path) for path in folder.gin_paths(cell.files, file)]
    runs = [*ledger.trials(cell), *(_run_of(ledger, cell, seed) for seed in ledger.seeds(cell))]
    for run in dict.fromkeys(runs):
      rate = '' if run.rate or not cell.rates else f' rate {_unchosen(cell)}'
      yield Order(
        run, f'{cell.name}{rate} seed {run.seed}' if rate else str(run), _words(ledger, run, files)
      )


def _words(ledger: Ledger, run: Run, files: list[str]) -> tuple[str, ...]:
  """The training command as the runner would start it: its checkpoints are those that the runner would go on with."""
  before = {name: _run_of(ledger, ledger.study.cell(name), run.seed) for name in run.cell.after}
  rate = repr(run.rate) if run.rate else _unchosen(run.cell) if run.cell.rates else None
  words = training_command.words(
    run.cell,
    run.seed,
    files=files,
    students={name: _folder(ledger, one) / STUDENT for name, one in before.items()},
    rate=rate,
    workdir=_folder(ledger, run),
  )
  return ('opd', *words)


def _run_of(ledger: Ledger, cell: Cell, seed: int) -> Run:
  """The run of a cell that belongs to a seed, without its rate where that is still to be chosen."""
  try:
    return ledger.run_of(cell, seed)
  except (NotYet, Never):
    return Run(cell, None, seed)


def _folder(ledger: Ledger, run: Run) -> Path:
  place = ledger.folder(run).resolve()
  chosen = run.rate or not run.cell.rates
  return place if chosen else place.parent.parent / _unchosen(run.cell) / place.name


def _unchosen(cell: Cell) -> str:
  """In the place of a rate that runs have yet to tell; gin refuses it."""
  return f'<best of {" ".join(map(repr, cell.rates))}>'


def _from_here(path: Path) -> str:
  here = Path.cwd()
  return str(path.relative_to(here) if path.is_relative_to(here) else path)


def prices(ledger: Ledger, file: Path, *, chip: Chip, mfu: float) -> dict[str, Price]:
  """What a run of each cell costs."""
  shapes: dict[str, ModelConfig] = {}
  found: dict[str, Price] = {}
  for cell in ledger.study.cells:
    if cell.seconds is not None:
      found[cell.name] = Price(cell.seconds / 3600)
      continue
    try:
      for name in cell.after:
        if name not in shapes:
          shapes[name] = experiment_of(ledger.study.cell(name), file).model
      experiment = experiment_of(cell, file)
      shapes[cell.name] = experiment.model
      counted = cost.cost_of(experiment, shapes)
      found[cell.name] = Price(counted.hours(chip, mfu).total, counted)
    except ValueError as error:
      found[cell.name] = Price(None, why=str(error))
  return found


def experiment_of(cell: Cell, file: Path) -> Experiment:
  """As its gin files describe it; a student that is yet to be trained has the name of its cell."""
  files = [str(path) for path in folder.gin_paths(cell.files, file)]
  bindings = training_command.bindings_of(cell, {name: name for name in cell.after})
  return configuration.build(files, bindings)[0]
