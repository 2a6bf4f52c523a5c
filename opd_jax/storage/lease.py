"""Floor 2. Who works in a folder of a bucket: an object that only one can create, and that its owner keeps alive.

Nobody takes the lock of a process that was killed away, so the owner counts a number up in it every few seconds.
Whoever finds a lock watches the number: where it stands still, its owner is gone.
"""

import json
import os
import socket
import threading
import time
import uuid
from collections.abc import Callable
from typing import Any

from opd_jax.storage import places
from opd_jax.storage.places import Place

BEAT = 10.0  # seconds between two signs of life
PATIENCE = 45.0  # seconds without one after which an owner is taken for gone


class Lease:
  """A lock that is held.

  Args:
    file: the object.
    refusal: names {folder} and {owner}.
    say: told when it has to wait for the lock of a process that may be gone, and whose it takes over.
  """

  def __init__(self, file: Place, refusal: str, say: Callable[[str], None] = print):
    self.file, self.mine, self._beats = file, uuid.uuid4().hex, 0
    self._over = threading.Event()
    while not places.create(file, self._text()):
      known = self._known()
      if known is not None and not self._is_gone(known, say):
        raise ValueError(refusal.format(folder=file.parent, owner=known.get('owner', 'somebody')))
      if known is not None:
        say(f'{file.parent} was left behind by {known.get("owner", "somebody")}; it is taken over')
      file.unlink(missing_ok=True)
    self._thread = threading.Thread(target=self._live, daemon=True)
    self._thread.start()

  def _text(self) -> str:
    since = time.strftime('%Y-%m-%d %H:%M:%S')
    owner = f'process {os.getpid()} on {socket.gethostname()}, sign of life at {since}'
    host, number = socket.gethostname(), os.getpid()
    record = {'owner': owner, 'id': self.mine, 'host': host, 'process': number, 'beat': self._beats}
    return json.dumps(record) + '\n'

  def _known(self) -> dict[str, Any] | None:
    """What the lock says; None where it has gone."""
    try:
      return json.loads(self.file.read_text())
    except (FileNotFoundError, ValueError):
      return None

  def _is_gone(self, known: dict[str, Any], say: Callable[[str], None]) -> bool:
    """Whether its owner is: a process of this host that is not there, or one that gives no sign of life."""
    if known.get('host') == socket.gethostname():
      try:
        os.kill(int(known['process']), 0)
      except ProcessLookupError:
        return True
      except (PermissionError, KeyError, ValueError):
        pass
    say(f'{self.file} is of {known.get("owner")}; waiting {PATIENCE:.0f} s for a sign of life')
    end = time.monotonic() + PATIENCE
    while time.monotonic() < end:
      time.sleep(min(BEAT, PATIENCE) / 4)
      now = self._known()
      if now is None:
        return True
      if now != known:
        return False
    return True

  def _live(self) -> None:
    while not self._over.wait(BEAT):
      known = self._known()
      if known is not None and known.get('id') != self.mine:
        return  # somebody took this process for gone
      self._beats += 1
      try:
        self.file.write_text(self._text())
      except Exception:  # the network comes back, or the lock goes to somebody else
        continue

  def close(self) -> None:
    """Gives the lock back."""
    self._over.set()
    self._thread.join()
    known = self._known()
    if known is not None and known.get('id') == self.mine:
      self.file.unlink(missing_ok=True)
