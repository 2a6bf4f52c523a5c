"""Floor 6. The words of the training command of a run."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from opd_jax.studies.study import Cell


def bindings_of(cell: Cell, students: Mapping[str, Path | str]) -> list[str]:
  """The bindings of a cell, with students in the place of the cells that leave them."""
  bindings = list(cell.bindings)
  for name, student in students.items():
    bindings = [text.replace(f'{{{name}}}', str(student)) for text in bindings]
  return bindings


def words(
  cell: Cell,
  seed: int,
  *,
  files: Sequence[str],
  students: Mapping[str, Path],
  rate: str | None,
  workdir: Path,
) -> list[str]:
  """From `train` on.

  Args:
    cell, seed: whose run it is.
    files: gin files of the cell, where they are.
    students: folders, by the cells that left them.
    rate: as gin reads it; None leaves what the files say.
    workdir: of the run.
  """
  bindings = bindings_of(cell, students)
  if rate is not None:
    bindings.append(f'RATE = {rate}')
  bindings.append(f'experiment.Experiment.seed = {seed}')
  return [
    'train',
    *(word for file in files for word in ('--gin_file', file)),
    *(word for text in bindings for word in ('--gin_bindings', text)),
    *('--workdir', str(workdir)),
  ]
