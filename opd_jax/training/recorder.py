"""Floor 5. The files of a run that a person or a plot reads: a line of JSON a step, TensorBoard beside it, texts.

`metrics.jsonl` holds one object a step, and one more where evaluations took place. Keys under `time/` are seconds of
the machine; all others are the same for the same configuration on the same kind of machine, however often the run was
interrupted. What is not finite is null.
"""

import hashlib
import importlib
import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from opd_jax.processes import to_host
from opd_jax.responses import Responses
from opd_jax.storage import places
from opd_jax.storage.places import Place, write_whole
from opd_jax.training.board import Board
from opd_jax.training.gradient import Batch

NOT_THE_RUN = 'time/'
SHOWN = 4  # texts of a record in samples.jsonl
ROLLOUTS = 'rollouts.jsonl'
FILES = ('metrics.jsonl', 'samples.jsonl', 'outcomes.jsonl', ROLLOUTS)


class Recorder:
  """The files of a run that a person or a plot reads.

  Args:
    workdir: where they are written.
    begin: the step behind which a run goes on.
    is_writer: whether this process writes.
    home: where they belong in the end, if elsewhere.
    wandb: a project.
    say: told once when a file is full.
  """

  def __init__(
    self,
    workdir: Path,
    *,
    begin: int,
    is_writer: bool,
    home: Place | None = None,
    wandb: str | None = None,
    say: Callable[[str], None] = print,
  ):
    self.folder, self.is_writer, self.say = workdir, is_writer, say
    self.home = home or workdir
    self._is_full = False
    self._board: Board | None = None
    self._wandb: Any = None
    if not is_writer:
      return
    for name in FILES:
      _rewind(workdir / name, begin)
    self._board = Board(workdir / 'tensorboard', begin=begin)
    if wandb is not None:
      try:
        service: Any = importlib.import_module('wandb')
      except ImportError as error:
        raise ValueError(
          'metrics: W&B is asked for and not installed; pip install wandb, or leave it out.'
        ) from error
      self._wandb = service.init(
        project=wandb, dir=str(workdir), resume='allow', id=_name_of(self.home)
      )

  def row(self, row: Mapping[str, Any]) -> None:
    """The metrics of a step."""
    if not self.is_writer:
      return
    append(self.folder / 'metrics.jsonl', [row])
    flat = {name: value for name, value in row.items() if isinstance(value, int | float)}
    if self._board is not None:
      self._board.row(flat, step=row['step'])
    if self._wandb is not None:
      self._wandb.log(flat, step=row['step'])

  def samples(self, rows: Sequence[Mapping[str, Any]]) -> None:
    """Texts of a batch."""
    if self.is_writer:
      append(self.folder / 'samples.jsonl', rows)

  def outcomes(self, rows: Sequence[Mapping[str, Any]]) -> None:
    """The outcome of every response of an evaluation."""
    if self.is_writer:
      append(self.folder / 'outcomes.jsonl', rows)

  def rollouts(self, rows: Sequence[Mapping[str, Any]], *, mib: int) -> None:
    """Responses of a batch token by token, as many as the file has room for within `mib`.

    How many are written depends on the file alone, so a run that was interrupted keeps the same ones.
    """
    if not self.is_writer:
      return
    with open(self.folder / ROLLOUTS, 'a') as stream:
      for row in rows:
        line = json.dumps(row, allow_nan=False) + '\n'  # in ASCII: a character is a byte
        if stream.tell() + len(line) > mib * 2**20:
          return self._say_full(f'{self.home / ROLLOUTS}, step {row["step"]}', mib)
        stream.write(line)

  def _say_full(self, where: str, mib: int) -> None:
    """Once."""
    if not self._is_full:
      self._is_full = True
      self.say(
        f'{where}: the next response would not fit into {mib} MiB. From here on, what does not fit is left out; bind '
        'RolloutRecords.mib, rows or every for more.'
      )

  def close(self) -> None:
    if self._board is not None:
      self._board.close()
    if self._wandb is not None:
      self._wandb.finish()


def _name_of(workdir: Place) -> str:
  """The same for the same folder, another for another of the same last name."""
  return f'{workdir.name}-{hashlib.sha256(str(places.absolute(workdir)).encode()).hexdigest()[:8]}'


def append(file: Path, rows: Sequence[Mapping[str, Any]]) -> None:
  """Objects, one a line."""
  with open(file, 'a') as stream:
    stream.writelines(json.dumps(_plain(row), allow_nan=False) + '\n' for row in rows)


def _plain(value: Any) -> Any:
  """What JSON knows: a number that is not finite is null."""
  if isinstance(value, float) and not math.isfinite(value):
    return None
  if isinstance(value, Mapping):
    return {name: _plain(each) for name, each in value.items()}
  return [_plain(each) for each in value] if isinstance(value, list | tuple) else value


def _rewind(file: Path, step: int) -> None:
  """Drops what was written after the checkpoint that a run resumes from, and a line that a kill cut short."""
  if not file.exists():
    return
  kept = [line for line in file.read_text().splitlines() if _step_of(line) <= step]
  write_whole(file, ''.join(line + '\n' for line in kept))


def _step_of(line: str) -> float:
  try:
    return float(json.loads(line)['step'])
  except (ValueError, KeyError):
    return math.inf


def read(workdir: str | Path) -> list[dict[str, Any]]:
  """The rows of a run's metrics."""
  return read_lines(Path(workdir) / 'metrics.jsonl')


def read_lines(file: Path) -> list[dict[str, Any]]:
  """The objects of a file of a run; a line that is being written is left out."""
  return [row for _, row in read_pairs(file)]


def read_pairs(file: Path) -> Iterator[tuple[str, dict[str, Any]]]:
  """Every whole line of a file of a run, with the object that it is."""
  with open(file, encoding='utf-8', errors='replace') as stream:
    for number, line in enumerate(stream, start=1):
      if not line.endswith('\n'):
        return
      try:
        yield line, json.loads(line)
      except ValueError as error:
        raise ValueError(
          f'{file}, line {number}: this is not JSON ({error}). Take the line out of the file.'
        ) from error


def texts_record(responses: Responses, step: int, stage: str) -> list[Mapping[str, Any]]:
  """A few texts of a batch, with their rewards."""
  return [
    {
      'step': step,
      'stage': stage,
      'prompt': responses.problems[row].messages[-1]['content'],
      'response': responses.texts[row],
      'reward': float(responses.rollout.reward[row]),
    }
    for row in range(min(SHOWN, len(responses.texts)))
  ]


def save_batch(batch: Batch, workdir: Path, step: int) -> Path:
  """The batch that rang an alarm, for whoever wants to know why."""
  file = workdir / f'alarm_step{step}.npz'  # every process gathers, one writes
  targets = {name: target._replace(head=None) for name, target in batch.targets.items()}
  leaves = {
    jax.tree_util.keystr(path): np.asarray(to_host(leaf))
    for path, leaf in jax.tree_util.tree_leaves_with_path(batch._replace(targets=targets))
  }
  if jax.process_index() == 0:
    with open(file, 'wb') as stream:
      np.savez(stream, allow_pickle=False, **leaves)
  return file
