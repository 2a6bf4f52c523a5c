"""Floor 4. A process that answers questions, one JSON line each, and is killed where it takes too long."""

import atexit
import json
import queue
import selectors
import subprocess
import sys
import time
from typing import Any

BEGIN = 60.0  # seconds that a new process may take before its first reply


class Worker:
  """One process, made when it is first asked. One thread asks at a time.

  Args:
    module: is run with `python -m`; it prints a line when it is ready, then a reply for each line that it reads.
  """

  def __init__(self, module: str):
    self.module = module
    self.process: subprocess.Popen[bytes] | None = None
    atexit.register(self.stop)

  def ask(self, question: Any, *, seconds: float) -> Any:
    """The reply, or None where there was none in time, or where the process died of the question."""
    process = self._ready()
    assert process.stdin is not None
    try:
      process.stdin.write(json.dumps(question).encode() + b'\n')
      process.stdin.flush()
      line = _line(process, seconds)
    except BrokenPipeError:
      line = None
    if line is None:
      self.stop()
      return None
    return json.loads(line)

  def stop(self) -> None:
    """Kills the process, if there is one."""
    if self.process is not None:
      self.process.kill()
      self.process.communicate()
      self.process = None

  def _ready(self) -> subprocess.Popen[bytes]:
    if self.process is None or self.process.poll() is not None:
      self.stop()
      command = [sys.executable, '-m', self.module]
      self.process = subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=0
      )
      if _line(self.process, BEGIN) is None:
        self.stop()
        raise RuntimeError(f'{" ".join(command)} did not begin within {BEGIN:.0f} s.')
    return self.process


class Pool:
  """Workers of one module. A question goes to the one that was asked last among those that are free.

  So questions that take long do not add up, and processes that nobody needs are never made.

  Args:
    module: of the workers.
    size: how many there are at most; further threads wait.
  """

  def __init__(self, module: str, size: int):
    self.free: queue.LifoQueue[Worker] = queue.LifoQueue()
    for _ in range(size):
      self.free.put(Worker(module))

  def ask(self, question: Any, *, seconds: float) -> Any:
    """What a worker replies, see `Worker.ask`."""
    worker = self.free.get()
    try:
      return worker.ask(question, seconds=seconds)
    finally:
      self.free.put(worker)


def _line(process: subprocess.Popen[bytes], seconds: float) -> bytes | None:
  """A line of what the process prints, or None where it does not come in time."""
  assert process.stdout is not None
  until, read = time.monotonic() + seconds, b''
  with selectors.DefaultSelector() as selector:
    selector.register(process.stdout, selectors.EVENT_READ)
    while not read.endswith(b'\n'):
      if not selector.select(max(0.0, until - time.monotonic())):
        return None
      part = process.stdout.read(65_536)
      if not part:
        return None
      read += part
  return read
