"""Floor 5. The folder of a run and the process that works in it: writable, locked, and asked to end."""

import fcntl
import os
import signal
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import jax

LOCK = '.lock'


def prepare(workdir: Path) -> None:
  """A folder that can be written."""
  try:
    if jax.process_index() == 0:
      workdir.mkdir(parents=True, exist_ok=True)
      probe = workdir / '.writable'
      probe.write_text('')
      probe.unlink()
  except OSError as error:
    raise ValueError(
      f'train: {workdir} cannot be written ({error.strerror}). Choose another --workdir.'
    ) from error


@contextmanager
def locked(workdir: Path) -> Iterator[None]:
  """One run in a folder: another is refused, and told whose it is. The kernel unlocks when the process ends."""
  if jax.process_index() != 0:
    yield
    return
  with open(workdir / LOCK, 'a+') as file:
    try:
      fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
      file.seek(0)
      owner = file.read().strip() or 'a process that did not leave its name'
      raise ValueError(
        f'train: another run is at work in {workdir}: {owner}. Wait for it, stop it, or choose another --workdir.'
      ) from error
    file.truncate(0)
    since = time.strftime('%Y-%m-%d %H:%M:%S')
    file.write(f'process {os.getpid()} on {socket.gethostname()}, since {since}\n')
    file.flush()
    yield


@contextmanager
def interrupts() -> Iterator[Callable[[], bool]]:
  """Whether somebody asked the run to end: SIGTERM, or ctrl-c once."""
  asked: list[int] = []

  def note(number: int, frame: Any) -> None:
    if asked and number == signal.SIGINT:
      raise KeyboardInterrupt
    asked.append(number)

  try:
    before = {number: signal.signal(number, note) for number in (signal.SIGTERM, signal.SIGINT)}
  except ValueError:  # not the main thread: somebody else minds the signals
    yield lambda: False
    return
  try:
    yield lambda: bool(asked)
  finally:
    for number, handler in before.items():
      signal.signal(number, handler)
