"""Floor 6. A process that makes one run after the other: what is imported and compiled for one, the next finds there.

It reads tasks from its input, one JSON line each, and answers every one with the exit status of its run. It ends with
its input, so also when whoever gave the tasks was killed; the run under way is finished before.
"""

import contextlib
import gc
import json
import os
import select
import subprocess
import sys
import traceback
from collections.abc import Mapping
from pathlib import Path

COMMAND = [sys.executable, '-m', 'opd_jax.studies.worker']
MAPPINGS = 20_000  # of memory; every program holds about eight, and Linux allows a process 65,530


class Worker:
  """The other end: gives tasks and sees how they ended.

  Args:
    lock: a descriptor that the process inherits.
    environment: of the process.
    command: what it is started with.
  """

  def __init__(self, *, lock: int, environment: Mapping[str, str], command: list[str]):
    self.process = subprocess.Popen(
      command,
      stdin=subprocess.PIPE,
      stdout=subprocess.PIPE,
      env=dict(environment),
      pass_fds=(lock,),
    )

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


def main() -> None:
  """One task after the other, to the end of the input."""
  answers = os.fdopen(os.dup(1), 'w')
  try:
    for line in sys.stdin:
      task = json.loads(line)
      with open(task['log'], 'a') as log:
        os.dup2(log.fileno(), 1)
        os.dup2(log.fileno(), 2)
      print(_status(task['words']), file=answers, flush=True)
      _make_room()
  except (KeyboardInterrupt, BrokenPipeError):
    os._exit(1)  # nobody listens any more


def _status(words: list[str]) -> int:
  """The exit status of `opd` with these words, whatever happens in it."""
  from opd_jax import cli

  sys.argv = ['opd', *words]
  try:
    return cli.main(words)
  except SystemExit as ended:
    return ended.code if isinstance(ended.code, int) else 1
  except Exception:
    traceback.print_exc()
    return 1
  finally:
    sys.stdout.flush()
    sys.stderr.flush()


def _make_room() -> None:
  """Lets go what the run left behind, and all programs where they are too many."""
  import jax

  mappings = Path('/proc/self/maps')
  if mappings.exists() and mappings.read_text().count('\n') > MAPPINGS:
    jax.clear_caches()
  gc.collect()


if __name__ == '__main__':
  main()
