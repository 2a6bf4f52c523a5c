"""Floor 5. How long devices of their own stand idle: a judge's between two batches, the student's while it waits."""

import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager


class Clock:
  """When each judge on devices of its own was at work, and when the student waited for one.

  Args:
    judges: their names.
    now: seconds.
    watched: whether it is known when they work; otherwise only the student's waiting is told.
  """

  def __init__(
    self,
    judges: Iterable[str],
    now: Callable[[], float] = time.monotonic,
    *,
    watched: bool = True,
  ):
    self._now, self._lock, self._known = now, threading.Lock(), frozenset(judges)
    self._busy: dict[str, list[list[float]]] = {name: [] for name in self._known if watched}
    self._waited, self._since = 0.0, now()

  @contextmanager
  def busy(self, judge: str) -> Iterator[None]:
    """A judge is at work, in any thread; one without devices of its own is not watched."""
    if judge not in self._busy:
      yield
      return
    span = [self._now(), float('inf')]
    with self._lock:
      self._busy[judge].append(span)
    try:
      yield
    finally:
      span[1] = self._now()

  @contextmanager
  def waiting(self, judge: str, *, busy: bool = True) -> Iterator[None]:
    """The student waits for a judge.

    Args:
      judge: its name.
      busy: whether the judge works only now, and not in another thread.
    """
    if judge not in self._known:
      yield
      return
    began = self._now()
    if busy:
      with self.busy(judge):
        yield
    else:
      yield
    self._waited += self._now() - began

  def begin(self) -> None:
    """Time before this, e.g. of an evaluation, is not counted."""
    self._lap()

  def idle(self) -> dict[str, float]:
    """The share of the time since `begin` or the last call in which each stood idle; nothing without judges apart."""
    if not self._known:
      return {}
    since, waited = self._since, self._waited
    now = self._lap()
    whole = max(now - since, 1e-9)
    inside = lambda span: max(min(span[1], now) - max(span[0], since), 0.0)
    idle = [('student', waited / whole)]
    with self._lock:
      for judge, spans in self._busy.items():
        idle.append((judge, 1 - sum(map(inside, spans)) / whole))
        self._busy[judge] = [span for span in spans if span[1] > now]
    return {f'time/idle/{name}': min(max(share, 0.0), 1.0) for name, share in idle}

  def _lap(self) -> float:
    self._since, self._waited = self._now(), 0.0
    return self._since
