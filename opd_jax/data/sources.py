"""Floor 1. Where raw rows come from: JSON lines, Parquet files, data sets of the hub."""

import functools
import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

Raw = Mapping[str, Any]


class Source:
  """Raw rows with names, by number."""

  def __len__(self) -> int:
    raise NotImplementedError

  def __getitem__(self, number: int) -> Raw:
    raise NotImplementedError

  def name(self, number: int) -> str:
    """Where a person finds the row."""
    raise NotImplementedError

  def id(self, number: int) -> str:
    """The row's name without folders: the same on every machine that has the file."""
    return self.name(number)

  @property
  def is_drawn(self) -> bool:
    """Whether rows are drawn from a seed, so that a few of them show what all are like."""
    return False


class JsonLines(Source):
  """The objects of a file, one a line. The file is scanned once; a row is parsed each time it is read."""

  def __init__(self, path: str):
    if not isinstance(path, str) or not path:
      raise ValueError(f'data: the path of a file is expected, got {path!r}.')
    self.path = str(Path(path).expanduser())

  @functools.cached_property
  def _offsets(self) -> np.ndarray:
    lines, at = [], 0
    try:
      with open(self.path, 'rb') as stream:
        for number, line in enumerate(stream, start=1):
          if not lines and line.lstrip().startswith(b'['):
            raise ValueError(
              f'data: {self.path} is one JSON array; one object a line is expected. `jq -c .[] FILE` makes that of it.'
            )
          if line.strip():
            lines.append((at, number))
          at += len(line)
    except OSError as error:
      raise ValueError(f'data: {self.path} cannot be read ({error.strerror}).') from error
    if not lines:
      raise ValueError(f'data: {self.path} holds no rows.')
    return np.array(lines)

  def __len__(self) -> int:
    return len(self._offsets)

  def name(self, number: int) -> str:
    return f'{self.path}, line {self._offsets[number][1]}'

  def id(self, number: int) -> str:
    return f'{Path(self.path).name}, line {self._offsets[number][1]}'

  def __getitem__(self, number: int) -> Raw:
    with open(self.path, 'rb') as stream:
      stream.seek(self._offsets[number][0])
      return parsed(stream.readline().decode('utf-8'))


class Table(Source):
  """A `datasets` table: Parquet files here, or a data set by its hub id.

  Args:
    name: of files or of the data set.
    load, options: for `datasets.load_dataset`.
    advice: what to do where it cannot be read.
  """

  def __init__(self, name: str, *load: Any, advice: str = '', **options: Any):
    self._name, self._load, self._options, self._advice = name, load, options, advice

  @functools.cached_property
  def _table(self) -> Any:
    try:
      import datasets
    except ImportError as error:
      raise ValueError(
        f"data: {self._name} needs the package datasets: pip install 'opd_jax[data]'."
      ) from error
    try:
      return datasets.load_dataset(*self._load, **self._options)
    except (FileNotFoundError, ValueError, OSError) as error:
      raise ValueError(
        f'data: {self._name} cannot be read: {(str(error) or repr(error)).splitlines()[0]}{self._advice}'
      ) from error

  def __len__(self) -> int:
    return len(self._table)

  def name(self, number: int) -> str:
    return f'{self._name}, row {number}'

  def id(self, number: int) -> str:
    return f'{Path(self._name).name}, row {number}'

  def __getitem__(self, number: int) -> Raw:
    return self._table[int(number)]


class Part(Source):
  """Some rows of a source, under their own names."""

  def __init__(self, source: Source, rows: Callable[[int], np.ndarray]):
    self._source, self._choose = source, rows

  @functools.cached_property
  def _rows(self) -> np.ndarray:
    return self._choose(len(self._source))

  def __len__(self) -> int:
    return len(self._rows)

  def __getitem__(self, number: int) -> Raw:
    return self._source[int(self._rows[number])]

  def name(self, number: int) -> str:
    return self._source.name(int(self._rows[number]))

  def id(self, number: int) -> str:
    return self._source.id(int(self._rows[number]))

  @property
  def is_drawn(self) -> bool:
    return self._source.is_drawn


def part(source: Source, *, held_out: bool = False, fraction: float = 0.1, seed: int = 0) -> Source:
  """The rows that are trained on, or those that are held out: no row is both.

  Args:
    source: all rows.
    held_out: whether these are the ones held out.
    fraction: of all rows that is held out, at least one.
    seed: of the choice, which depends on nothing else but the number of rows.
  """
  if not isinstance(fraction, int | float) or not 0 < fraction < 1:
    raise ValueError(f'sources: fraction must lie between 0 and 1, got {fraction!r}.')

  def rows(count: int) -> np.ndarray:
    if count < 2:
      raise ValueError(
        f'data: of {count} row none can be held out beside one to train on. Add rows.'
      )
    held = max(1, round(fraction * count))
    order = np.random.default_rng(seed).permutation(count)
    return np.sort(order[:held] if held_out else order[held:])

  return Part(source, rows)


def json_lines(path: str) -> Source:
  """A file of JSON objects, one a line."""
  if isinstance(path, str) and path.endswith(('.gz', '.bz2', '.xz', '.zst', '.zip')):
    raise ValueError(f'{path} is compressed; unpack it, lines are read where they lie.')
  return JsonLines(path)


def parquet(files: str) -> Source:
  """Parquet files, as a path or a pattern."""
  return Table(files, 'parquet', data_files=files, split='train')


def arrow(files: str) -> Source:
  """Arrow files as `datasets` keeps them (`save_to_disk`), as a path or a pattern."""
  return Table(files, 'arrow', data_files=files, split='train')


def hub(
  name: str, *, config: str | None = None, split: str = 'train', revision: str | None = None
) -> Source:
  """A data set of the hub, downloaded once.

  Args:
    name: its id; or a folder with a copy of it, README.md included.
    config, split, revision: which part of it.
  """
  advice = (
    '. Check the name and the network; without one, name a folder with a copy of the data set instead, its '
    'README.md included.'
  )
  return Table(name, name, config, split=split, revision=revision, advice=advice)


def read_rows(lines: Iterable[str], *, name: str) -> Iterator[tuple[int, dict[str, Any]]]:
  """JSON objects of a stream of lines with their line numbers, from 1; blank lines are skipped.

  Args:
    lines: one object a line.
    name: of the file, for errors.
  """
  for number, line in enumerate(lines, start=1):
    if not line.strip():
      continue
    try:
      row = parsed(line)
    except ValueError as error:
      raise ValueError(f'{name}, line {number}: {error}') from error
    yield number, row


def parsed(line: str) -> dict[str, Any]:
  """The object that a line of JSON holds."""
  try:
    row = json.loads(line.removeprefix('\ufeff'))  # some editors begin a file with this mark
  except json.JSONDecodeError as error:
    raise ValueError(f'not JSON ({error}). One object a line is expected.') from error
  if not isinstance(row, dict):
    raise ValueError(f'{type(row).__name__} instead of an object.')
  return row
