"""Floor 1. What is asked, and what counts as an answer: tasks, and endless streams of their problems.

A task joins a source of raw rows, a reader that makes a `Problem` of one, and a verifier. A stream walks through it
in an order that the seed fixes, anew in every epoch; its whole state is a few numbers that go into the checkpoint.
Every process reads the same rows: problems are small, and a run can then be resumed by another number of them.
"""

import dataclasses
import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple, cast

import grain
import numpy as np

from opd_jax.data.prompts import parsed
from opd_jax.data.tokenizers import Message

Raw = Mapping[str, Any]


class Problem(NamedTuple):
  """One question. Whatever a verifier or a privileged judge may want travels with it."""

  messages: tuple[Message, ...]  # up to where the answer begins
  answer: str = ''  # what a verifier compares with
  trace: str | tuple[Message, ...] | None = None  # what to imitate, where there is anything: an answer, or turns
  route: str = ''  # which of several teachers answers for it
  name: str = ''  # file and number, for errors


Reader = Callable[[Raw], Problem | None]  # None: the row is not wanted
Verifier = Callable[[Problem, str], float]  # problem and response -> reward


class Source:
  """Raw rows with names, by number."""

  def __len__(self) -> int:
    raise NotImplementedError

  def __getitem__(self, number: int) -> Raw:
    raise NotImplementedError

  def name(self, number: int) -> str:
    raise NotImplementedError


class JsonLines(Source):
  """The objects of a file, one a line. The file is scanned once; rows are parsed when they are asked for."""

  def __init__(self, path: str):
    self.path = path

  @functools.cached_property
  def _offsets(self) -> np.ndarray:
    found, at = [], 0
    with open(self.path, 'rb') as stream:
      for number, line in enumerate(stream, start=1):
        if line.strip():
          found.append((at, number))
        at += len(line)
    if not found:
      raise ValueError(f'data: {self.path} holds no rows.')
    return np.array(found)

  def __len__(self) -> int:
    return len(self._offsets)

  def name(self, number: int) -> str:
    return f'{self.path}, line {self._offsets[number][1]}'

  def __getitem__(self, number: int) -> Raw:
    with open(self.path, 'rb') as stream:
      stream.seek(self._offsets[number][0])
      return parsed(stream.readline().decode('utf-8'))


class Table(Source):
  """A `datasets` table: Parquet files here, or a data set by its hub id."""

  def __init__(self, name: str, *load: Any, **options: Any):
    self._name, self._load, self._options = name, load, options

  @functools.cached_property
  def _table(self) -> Any:
    try:
      import datasets
    except ImportError as error:
      raise ValueError(f"data: {self._name} needs the package datasets: pip install 'opd_jax[data]'.") from error
    try:
      return datasets.load_dataset(*self._load, **self._options)
    except (FileNotFoundError, ValueError, OSError) as error:
      raise ValueError(f'data: {self._name} cannot be read: {str(error).splitlines()[0]}') from error

  def __len__(self) -> int:
    return len(self._table)

  def name(self, number: int) -> str:
    return f'{self._name}, row {number}'

  def __getitem__(self, number: int) -> Raw:
    return self._table[int(number)]


def json_lines(path: str) -> Source:
  """A file of JSON objects, one a line."""
  return JsonLines(path)


def parquet(files: str) -> Source:
  """Parquet files, as a path or a pattern."""
  return Table(files, 'parquet', data_files=files, split='train')


def hub(name: str, *, config: str | None = None, split: str = 'train', revision: str | None = None) -> Source:
  """A data set of the hub, downloaded once."""
  return Table(name, name, config, split=split, revision=revision)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Task:
  """A kind of problem.

  Args:
    name: as it appears in metrics.
    source: raw rows.
    read: one raw row -> a problem, or None where the row is not wanted.
    verify: problem and response -> reward; None where nobody can tell.
    on_bad_row: what a row that cannot be read does to a run: 'stop' it, or be counted and left out.
  """

  name: str
  source: Source
  read: Reader
  verify: Verifier | None = None
  on_bad_row: str = 'stop'

  def __post_init__(self):
    if self.on_bad_row not in ('stop', 'skip'):
      raise ValueError(f"Task: on_bad_row is 'stop' or 'skip', got {self.on_bad_row!r}.")


class _Left(NamedTuple):
  """A row that is left out: bad where there is a message, unwanted where there is none. (grain waits at a None.)"""

  message: str | None


@dataclasses.dataclass(frozen=True)
class _Reading:
  """Rows as problems, for grain: what cannot be read, or does not fit, comes back as what is wrong with it."""

  task: Task
  fits: Callable[[Problem], None] = lambda problem: None

  def __len__(self) -> int:
    return len(self.task.source)

  def __getitem__(self, number: Any) -> Problem | _Left:
    name = self.task.source.name(number)
    try:
      problem = self.task.read(self.task.source[number])
      if problem is not None:
        self.fits(problem)
    except (ValueError, KeyError, TypeError, IndexError, UnicodeDecodeError) as error:
      what = f'it has no {error}' if isinstance(error, KeyError) else str(error)
      return _Left(f'{name}: {what}')
    return _Left(None) if problem is None else problem._replace(name=name)


class Stream(Iterator[Problem]):
  """The problems of a task without end, shuffled anew in every epoch.

  Args:
    task: whose problems.
    seed: of their order.
    fits: raises ValueError for a problem that cannot be used; that makes its row a bad one.
  """

  def __init__(self, task: Task, *, seed: int = 0, fits: Callable[[Problem], None] = lambda problem: None):
    self.task, self.skipped = task, 0
    order = grain.MapDataset.source(cast(Any, _Reading(task, fits))).seed(seed).shuffle().repeat()
    self._iterator = iter(order.to_iter_dataset(grain.ReadOptions(num_threads=1, prefetch_buffer_size=64)))

  def __next__(self) -> Problem:
    last = 'all are filtered out'
    for _ in range(2 * len(self.task.source) + 1):  # two epochs without one that is wanted: there is none
      found = next(self._iterator)
      if isinstance(found, Problem):
        return found
      if found.message is not None:
        if self.task.on_bad_row == 'stop':
          raise ValueError(f'data: {found.message} (task {self.task.name}; on_bad_row="skip" leaves such rows out).')
        self.skipped, last = self.skipped + 1, f'the last bad one is {found.message}'
    raise ValueError(f'data: no row of the task {self.task.name} can be used: {last}.')

  def take(self, count: int) -> list[Problem]:
    return [next(self) for _ in range(count)]

  def state(self) -> dict[str, Any]:
    return {'grain': self._iterator.get_state(), 'skipped': self.skipped}

  def restore(self, state: Mapping[str, Any]) -> None:
    self._iterator.set_state(state['grain'])
    self.skipped = int(state['skipped'])


def first(task: Task, count: int) -> list[Problem]:
  """The first problems of a task in the order of its source: a fixed set to evaluate on."""
  found: list[Problem] = []
  reading = _Reading(task)
  for number in range(len(reading)):
    if len(found) == count:
      break
    problem = reading[number]
    if isinstance(problem, Problem):
      found.append(problem)
    elif problem.message is not None and task.on_bad_row == 'stop':
      raise ValueError(f'data: {problem.message}')
  return found


def asked(text: str) -> tuple[Message, ...]:
  """A question as a conversation."""
  return ({'role': 'user', 'content': text},)


def from_columns(*, problem: str = 'problem', answer: str = 'answer', trace: str | None = None) -> Reader:
  """A reader of rows with plain columns of text.

  Args:
    problem, answer: names of the columns.
    trace: column of a response to imitate; None where there is none.
  """

  def read(row: Raw) -> Problem:
    return Problem(
      messages=asked(str(row[problem])), answer=str(row[answer]), trace=None if trace is None else str(row[trace])
    )

  return read


def from_messages(*, column: str = 'messages', answer: str | None = None) -> Reader:
  """A reader of conversations, {role, content} each: what stands before the first answer is the prompt.

  Args:
    column: of the messages.
    answer: column of what a verifier compares with; None where there is none.
  """

  def read(row: Raw) -> Problem:
    turns = [{'role': str(turn['role']), 'content': turn['content']} for turn in row[column]]
    if any(not isinstance(turn['content'], str) for turn in turns):
      raise ValueError('its conversation has a turn without text (a tool call?)')
    begin = next((number for number, turn in enumerate(turns) if turn['role'] == 'assistant'), len(turns))
    if all(turn['role'] != 'user' for turn in turns[:begin]):
      raise ValueError('its conversation begins without a question')
    trace = None if begin == len(turns) else tuple(turns[begin:])
    return Problem(tuple(turns[:begin]), answer='' if answer is None else str(row[answer]), trace=trace)

  return read


def roles(turns: Sequence[Raw], names: Mapping[str, str]) -> list[Message]:
  """Turns of {from, value}, in the names that chat templates know."""
  return [{'role': names[str(turn['from'])], 'content': str(turn['value'])} for turn in turns]
