"""Floor 6. The processes that make the runs of a study, seen from the study; the other end is worker.py."""

import contextlib
import json
import os
import select
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

COMMAND = [sys.executable, '-m', 'opd_jax.worker']


def shares(jobs: int) -> list[list[int] | None]:
  """Cores for each of so many workers: XLA's threads of two would wait for each other. None where they are too few."""
  if not hasattr(os, 'sched_getaffinity'):
    return [None] * jobs  # not Linux
  cores = sorted(os.sched_getaffinity(0))
  return [cores[i::jobs] if jobs <= len(cores) else None for i in range(jobs)]


class Worker:
  """The other end: gives tasks and sees how they ended.

  Args:
    lock: a descriptor that the process inherits.
    environment: of the process.
    command: what it is started with.
    cores: that it may use; None: all.
  """

  def __init__(
    self,
    *,
    lock: int,
    environment: Mapping[str, str],
    command: list[str],
    cores: list[int] | None,
  ):
    self.cores = cores
    self.process = subprocess.Popen(
      command,
      stdin=subprocess.PIPE,
      stdout=subprocess.PIPE,
      env=dict(environment),
      pass_fds=(lock,),
    )
    if cores is not None:  # before it has threads of its own, which inherit this
      os.sched_setaffinity(self.process.pid, cores)

  def begin(self, words: list[str], log: Path) -> None:
    """Lets it run `opd` with these words; what that prints is appended to the log."""
    assert self.process.stdin is not None
    with contextlib.suppress(BrokenPipeError):  # where it has died, `status` tells
      self.process.stdin.write(json.dumps({'words': words, 'log': str(log)}).encode() + b'\n')
      self.process.stdin.flush()

  def status(self) -> int | None:
    """The exit status of the task, or of the process where it died; None while it is at work."""
    assert self.process.stdout is not None
    if not select.select([self.process.stdout], [], [], 0)[0]:
      return None
    answer = self.process.stdout.readline()
    return int(answer) if answer else self.process.wait()

  def is_alive(self) -> bool:
    return self.process.poll() is None

  def terminate(self) -> None:
    """Asks it to save and to end."""
    self.process.terminate()

  def wait(self) -> None:
    """Until it has ended."""
    assert self.process.stdin is not None and self.process.stdout is not None
    with contextlib.suppress(BrokenPipeError):
      self.process.stdin.close()
    self.process.wait()
    self.process.stdout.close()
