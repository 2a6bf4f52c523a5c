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

from opd_jax import host
from opd_jax.processes import first_does
from opd_jax.storage.lease import Lease
from opd_jax.storage.places import Place

LOCK = '.lock'
OF_MODELS = 'config.json', 'opd.json', 'model.safetensors'
REFUSAL = (
  'another run is at work in {folder}: {owner}. Wait for it, stop it, or choose another --workdir.'
)


def prepare(workdir: Place, *, command: str = 'train') -> None:
  """A folder that can be written.

  Args:
    workdir: the folder.
    command: whose errors they are.
  """

  def probe() -> None:
    if any((workdir / name).exists() for name in OF_MODELS):
      raise ValueError(f'{command}: {workdir} is the folder of a model. Choose another --workdir.')
    try:
      workdir.mkdir(parents=True, exist_ok=True)
      (workdir / '.writable').write_text('')
      (workdir / '.writable').unlink()
    except Exception as error:  # an OSError; clients of buckets raise many types
      reason = getattr(error, 'strerror', None) or f'{type(error).__name__}: {str(error)[:160]}'
      raise ValueError(
        f'{command}: {workdir} cannot be written ({reason}). Choose another --workdir.'
      ) from error

  first_does(probe)


@contextmanager
def locked(
  workdir: Place, *, command: str = 'train', say: Callable[[str], None] = lambda text: None
) -> Iterator[None]:
  """One run in a folder: another is refused in all its processes, and told whose the folder is.

  The first process of a run holds the lock; the kernel unlocks when it ends. Of a bucket see `lease`.

  Args:
    workdir: the folder.
    command: who is refused.
    say: told whose lock was taken over, where its owner has died.
  """
  refusal, file = f'{command}: {REFUSAL}', workdir / LOCK
  take = lambda: lock(file, refusal, say) if isinstance(file, Path) else Lease(file, refusal, say)
  held = first_does(take)
  try:
    yield
  finally:
    if isinstance(held, Lease):
      held.close()
    elif held is not None:
      os.ftruncate(held, 0)  # nobody's: what is left behind by a process that died has a name in it
      os.close(held)


def lock(file: Path, refusal: str, say: Callable[[str], None] = lambda text: None) -> int:
  """The descriptor of a file that nobody else may lock while it is open.

  Args:
    file: it.
    refusal: names {folder} and {owner}.
    say: told whose it was, where its owner has died.
  """
  opened = os.open(file, os.O_RDWR | os.O_CREAT, 0o666)
  try:
    fcntl.flock(opened, fcntl.LOCK_EX | fcntl.LOCK_NB)
  except OSError as error:
    os.close(opened)
    owner = file.read_text().strip() or 'a process that did not leave its name'
    raise ValueError(refusal.format(folder=file.parent, owner=owner)) from error
  if before := file.read_text().strip():
    say(f'{file.parent} was left behind by {before}; it is taken over')
  since = time.strftime('%Y-%m-%d %H:%M:%S')
  file.write_text(f'process {os.getpid()} on {socket.gethostname()}, since {since}\n')
  return opened


@contextmanager
def interrupts() -> Iterator[Callable[[], int]]:
  """The signal by which somebody asked the run to end, SIGTERM or ctrl-c once; 0: nobody did."""
  asked: list[int] = []

  def note(number: int, frame: Any) -> None:
    if asked and number == signal.SIGINT:
      raise KeyboardInterrupt
    asked.append(number)
    host.ENDING.set()

  try:
    before = {number: signal.signal(number, note) for number in (signal.SIGTERM, signal.SIGINT)}
  except ValueError:  # not the main thread: somebody else minds the signals
    yield lambda: 0
    return
  try:
    yield lambda: asked[0] if asked else 0
  finally:
    host.ENDING.clear()
    for number, handler in before.items():
      signal.signal(number, handler)
