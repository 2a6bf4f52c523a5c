"""Floor 0. What several processes of one run do together."""

import json
from collections.abc import Callable
from typing import Any, TypeVar

import jax
import numpy as np
from jax.experimental import multihost_utils

MESSAGE = 4096  # bytes of a refusal that travel between processes
T = TypeVar('T')


def to_host(tree: Any) -> Any:
  """Arrays in the memory of this host, whole, wherever their pieces lie; every process calls it."""

  def one(x: Any) -> Any:
    if isinstance(x, jax.Array) and not x.is_fully_addressable:
      return multihost_utils.process_allgather(x, tiled=True)
    return jax.device_get(x)

  return jax.tree.map(one, tree)


def barrier(where: str) -> None:
  """Every process waits here for the others."""
  if jax.process_count() > 1:
    multihost_utils.sync_global_devices(where)


def any_process_each(here: np.ndarray) -> np.ndarray:
  """Entry by entry, whether it is true in any process."""
  if jax.process_count() == 1:
    return here
  return multihost_utils.process_allgather(np.asarray(here)).any(axis=0)


def largest(here: int) -> int:
  """The largest number that any process hands in."""
  if jax.process_count() == 1:
    return here
  return int(multihost_utils.process_allgather(np.int32(here)).max())


def first_does(what: Callable[[], T]) -> T | None:
  """What the first process makes; None in the others. What stops it there stops every process, with the same words."""
  made, error = None, None
  if jax.process_index() == 0:
    try:
      made = what()
    except Exception as caught:  # also a bug: the others would wait for this process for ever
      error = caught
  said = _told_by_first('' if error is None else str(error) or type(error).__name__)
  if error is not None:
    raise error
  if said:
    raise ValueError(said)
  return made


def agreed(value: Any) -> Any:
  """What the first process says, in every process: something that JSON holds. All of them call it.

  Two machines may judge the same answer differently, e.g. where one of them is slower than a time limit.
  """
  if jax.process_count() == 1:
    return value
  own = json.dumps(value).encode()
  size = int(multihost_utils.broadcast_one_to_all(np.int32(len(own))))
  content = np.frombuffer(own[:size].ljust(size, b'\0'), np.uint8)
  return json.loads(np.asarray(multihost_utils.broadcast_one_to_all(content), np.uint8).tobytes())


def _told_by_first(text: str) -> str:
  """The text of the first process, in every process."""
  if jax.process_count() == 1:
    return text
  content = np.frombuffer(text.encode()[:MESSAGE].ljust(MESSAGE, b'\0'), np.uint8)
  told = np.asarray(multihost_utils.broadcast_one_to_all(content), np.uint8)
  return told.tobytes().rstrip(b'\0').decode(errors='ignore')
