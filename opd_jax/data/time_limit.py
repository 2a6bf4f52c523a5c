"""Floor 1. Ends foreign Python that takes too long, in whichever thread it runs: a chat template may loop."""

import ctypes
import sys
import threading
import time
from collections.abc import Callable
from typing import TypeVar

SECONDS = 10.0
T = TypeVar('T')
_deadlines: dict[int, float] = {}  # by thread
_lock = threading.Lock()
_watcher: list[threading.Thread] = []


class _TooLate(BaseException):
  """Raised inside what takes too long."""


def limited(work: Callable[[], T]) -> T:
  """What `work` returns; TimeoutError where it takes longer than `SECONDS`.

  Loops of Python code can be ended, a single call into C cannot.
  """
  thread = threading.get_ident()
  with _lock:
    _deadlines[thread] = time.monotonic() + SECONDS
    if not _watcher:
      _watcher.append(threading.Thread(target=_watch, daemon=True))
      _watcher[0].start()
  try:
    try:
      return work()
    finally:
      _end(thread)
  except _TooLate:
    raise TimeoutError(f'it did not end within {SECONDS:.0f} s') from None


def _end(thread: int) -> None:
  """Takes the deadline back; where the watcher was faster, waits here for its exception, so that none comes later."""
  with _lock:
    under_way = _deadlines.pop(thread, None) is None
  while under_way and not isinstance(sys.exc_info()[1], _TooLate):
    time.sleep(0.001)


def _watch() -> None:
  while True:
    time.sleep(0.1)
    with _lock:
      late = [thread for thread, until in _deadlines.items() if time.monotonic() > until]
      for thread in late:
        del _deadlines[thread]
        ctypes.pythonapi.PyThreadState_SetAsyncExc(
          ctypes.c_ulong(thread), ctypes.py_object(_TooLate)
        )
