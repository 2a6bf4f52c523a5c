"""Floor 6. The folder of a study: one study, one process at a time, and where its runs come from."""

import contextlib
import hashlib
import importlib.metadata
import json
import os
import platform
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import opd_jax
from opd_jax.gin_files import read_files
from opd_jax.storage.places import write_whole
from opd_jax.studies.ledger import DONE
from opd_jax.studies.study import Study, fields_of
from opd_jax.training import workdir

RECORD = 'study.json'
VERDICTS = 'verdicts.json'  # as the last table had them; `opd report` reads it
REFUSAL = (
  'study: {owner}, or a run that it began, is at work in {folder}. Wait for it, stop it, or '
  'choose another --workdir.'
)
PACKAGES = ('jax', 'jaxlib', 'flax', 'optax', 'orbax-checkpoint', 'numpy', 'scipy')


def write_atomically(file: Path, content: Any) -> None:
  """JSON that is there whole or not at all."""
  write_whole(file, json.dumps(content, indent=1) + '\n')


@contextlib.contextmanager
def locked(root: Path) -> Iterator[int]:
  """Yields a descriptor that workers inherit: the folder is theirs, too, until the last of them has ended."""
  root.mkdir(parents=True, exist_ok=True)
  opened = workdir.lock(root / workdir.LOCK, REFUSAL)
  try:
    yield opened
  finally:
    os.close(opened)


def check(study: Study, file: Path, root: Path) -> dict[str, Any]:
  """Refuses another study than the folder's. Cells, seeds and rates may be added. Returns what claims it."""
  now = _record(study, file)
  before = json.loads((root / RECORD).read_text()) if (root / RECORD).exists() else now
  ran = {file.parts[-4] for file in root.glob(f'runs/*/*/*/{DONE}')}
  if unlike := _differences(before, now, ran=ran):
    raise ValueError(
      f'study: {root} holds another study: {"; ".join(unlike[:3])}. Cells, seeds and rates may be '
      'added, the others must stay as they were run. Choose another --workdir.'
    )
  return now


def claim(study: Study, file: Path, root: Path) -> None:
  """Makes the folder this study's."""
  write_atomically(root / RECORD, check(study, file, root))


def _record(study: Study, file: Path) -> dict[str, Any]:
  """What decides what the runs are, as JSON gives it back."""
  cells = {
    cell.name: {
      'fields': fields_of(cell),
      'rates': cell.rates,
      'files': [_digest(name, file) for name in cell.files],
    }
    for cell in study.cells
  }
  known = {'paper': study.paper, 'cells': cells}
  known |= {'seeds': study.seeds, 'tuning_seeds': study.tuning_seeds}
  return json.loads(json.dumps(known))


def _digest(name: str, study: Path) -> str:
  """Of a gin file and of all that it includes, without lines that are comments."""
  texts = [gin.text for gin in read_files([name], includer=study)]
  lines = [line for text in texts for line in text.splitlines() if line and line[0] != '#']
  return hashlib.sha256('\n'.join(lines).encode()).hexdigest()[:16]


def _differences(before: dict[str, Any], now: dict[str, Any], *, ran: set[str]) -> list[str]:
  """What is now otherwise, or gone. A cell that has not been `ran`, e.g. because it failed, may be mended."""
  unlike = []
  if before['paper'] != now['paper']:
    unlike.append(f'its paper is {before["paper"]!r}, not {now["paper"]!r}')
  for name in ('seeds', 'tuning_seeds'):
    if gone := sorted(set(before[name]) - set(now[name])):
      unlike.append(f'{name} {gone} are gone')
  for name, cell in before['cells'].items():
    if name not in now['cells']:
      unlike.append(f'it has a cell {name}')
      continue
    if name not in ran:
      continue
    other = now['cells'][name]
    unlike += [
      f'{name} has other {what}' for what in ('fields', 'files') if cell[what] != other[what]
    ]
    if gone := sorted(set(cell['rates']) - set(other['rates'])):
      unlike.append(f'rates {gone} of {name} are gone')
  return unlike


def gin_paths(names: tuple[str, ...], study: Path) -> list[Path]:
  """Where the gin files of a cell are."""
  return [list(read_files([name], includer=study))[-1].path.resolve() for name in names]


def origin() -> dict[str, Any]:
  """Commit, versions and device. A process of its own asks for the device: here it would hold its memory."""
  code = 'import jax; d = jax.devices(); print(len(d), "x", d[0].device_kind)'
  asked = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, check=False)
  device = asked.stdout.strip() or f'unknown ({asked.stderr.strip()[-200:]})'
  versions = {name: importlib.metadata.version(name) for name in PACKAGES}
  versions |= {'opd_jax': opd_jax.__version__, 'python': platform.python_version()}
  return {
    'commit': _commit(),
    'versions': versions,
    'device': device,
    'machine': platform.machine(),
  }


def _commit() -> str | None:
  """Of the source, where it is a checkout; `+` where something was changed."""
  root = Path(opd_jax.__file__).resolve().parent.parent
  if not (root / '.git').exists():
    return None
  git = lambda *words: subprocess.run(
    ['git', '-C', str(root), *words], capture_output=True, text=True, check=False
  ).stdout.strip()
  return git('rev-parse', 'HEAD') + ('+' if git('status', '--porcelain') else '')
