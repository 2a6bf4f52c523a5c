"""Floor 0. What several processes of one run do together."""

import json
from collections.abc import Callable, Iterable, Sequence
from typing import Any, TypeVar

import jax
import numpy as np
from jax.experimental import multihost_utils

T = TypeVar('T')


def owners(devices: Iterable[Any]) -> list[int]:
  """The processes that have some of these devices."""
  return sorted({device.process_index for device in devices})


def everywhere(tree: Any) -> bool:
  """Whether every process has a device of every array, or of every shape that says where it lies."""
  if jax.process_count() == 1:
    return True
  places = (getattr(leaf, 'sharding', None) for leaf in jax.tree.leaves(tree))
  return all(len(owners(place.device_set)) == jax.process_count() for place in places if place)


def to_host(tree: Any) -> Any:
  """Arrays in the memory of this host, whole, wherever their pieces lie; every process calls it."""
  if jax.process_count() == 1:
    return jax.device_get(tree)
  return jax.tree.map(_whole, tree)


def _whole(x: Any) -> Any:
  """One array; processes without a device of it get it from the first that has one."""
  if not isinstance(x, jax.Array) or not x.committed:  # what no computation of the run has placed
    return jax.device_get(x)
  there, here = owners(x.sharding.device_set), None
  if jax.process_index() in there:
    if x.is_fully_replicated:
      here = np.asarray(x.addressable_data(0))
    else:
      gather = multihost_utils.process_allgather
      here = jax.device_get(x) if x.is_fully_addressable else gather(x, tiled=True)
  if len(there) == jax.process_count():
    return here
  return _from(there[0], np.zeros(x.shape, x.dtype) if here is None else np.asarray(here))


def _from(source: int, value: np.ndarray) -> np.ndarray:
  """What one process has, in every process, bit for bit; the others hand in an array of its shape."""
  if not value.size:
    return value
  flat = np.frombuffer(np.ascontiguousarray(value).tobytes(), np.uint8)
  is_source = jax.process_index() == source
  told = np.asarray(multihost_utils.broadcast_one_to_all(flat, is_source=is_source), np.uint8)
  return np.frombuffer(told.tobytes(), value.dtype).reshape(value.shape)


def by_owners(devices: Iterable[Any], make: Callable[[], Any], like: Any) -> Any:
  """Arrays in host memory that only processes with some of these devices can make, in every process.

  Args:
    devices: that are worked with.
    make: called in their processes; what it refuses is refused in every process.
    like: arrays of the same shapes.
  """
  there = owners(devices)
  if len(there) == jax.process_count():
    return make()
  made, error = like, None
  if jax.process_index() in there:
    try:
      made = make()
    except Exception as caught:  # also a bug: the others would wait for ever
      error = caught
  said = _told(there[0], '' if error is None else str(error) or type(error).__name__)
  if error is not None:
    raise error
  if said:
    raise ValueError(said)
  return jax.tree.map(lambda x: _from(there[0], np.asarray(x)), made)


def blank(shapes: Any) -> Any:
  """Arrays of the host of these shapes, of any content."""
  return jax.tree.map(lambda leaf: np.empty(leaf.shape, leaf.dtype), shapes)


def placed(tree: Any, shardings: Any) -> Any:
  """Whole arrays of the host, laid onto devices of any process."""
  lay = lambda x, sharding: jax.make_array_from_callback(
    x.shape, sharding, lambda where: x[where], dtype=x.dtype
  )
  return jax.tree.map(lay, tree, shardings)


def carried(tree: Any, shardings: Any) -> Any:
  """Arrays on other devices, which may be those of other processes; every process calls it."""
  if jax.process_count() == 1 or not _crosses(tree, shardings):
    return jax.device_put(tree, shardings)
  if jax.default_backend() != 'cpu':
    try:
      return jax.device_put(tree, shardings)  # over the network of the chips
    except ValueError:  # not between such devices
      pass
  return placed(jax.tree.map(np.asarray, to_host(tree)), shardings)


def _crosses(tree: Any, shardings: Any) -> bool:
  """Whether something goes to devices where it does not lie yet."""
  places = [leaf.sharding.device_set for leaf in jax.tree.leaves(tree)]
  goals = [goal.device_set for goal in jax.tree.leaves(shardings)]
  return places != goals


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
  said = _told(0, '' if error is None else str(error) or type(error).__name__)
  if error is not None:
    raise error
  if said:
    raise ValueError(said)
  return made


def agreed(value: Any) -> Any:
  """What the first process says, in every process: something that JSON holds. All of them call it."""
  if jax.process_count() == 1:
    return value
  return json.loads(_told(0, json.dumps(value)))


def dealt(work: Callable[[Sequence[int]], Sequence[T]], rows: int) -> list[T]:
  """What `work` makes of all rows. Every process does its share, and every process gets all: something that JSON holds.

  All of them call it. Two machines may judge the same answer differently, e.g. where one of them is slower than a time
  limit: every row has one judge. What stops one process stops all of them, with the same words.

  Args:
    work: makes a value of each row that it is handed; one process of several is handed only some.
    rows: how many there are.
  """
  count = jax.process_count()
  if count == 1:
    return [*work(range(rows))]
  mine, error = range(jax.process_index(), rows, count), None
  made: Sequence[T] = ()
  try:
    made = work(mine)
  except Exception as caught:  # also a bug: the others would wait for this process for ever
    error = caught
  said = '' if error is None else str(error) or type(error).__name__
  told = _told_by_all(json.dumps([said, [*made]]))
  if error is not None:
    raise error
  if refusals := [text for text, _ in told if text]:
    raise ValueError(refusals[0])
  return [told[row % count][1][row // count] for row in range(rows)]


def _told_by_all(text: str) -> list[Any]:
  """What every process says, in every process."""
  own = np.frombuffer(text.encode(), np.uint8)
  sizes = np.asarray(multihost_utils.process_allgather(np.int32(len(own))))
  padded = np.zeros(int(sizes.max()), np.uint8)
  padded[: len(own)] = own
  texts = np.asarray(multihost_utils.process_allgather(padded), np.uint8)
  return [json.loads(row[:size].tobytes()) for row, size in zip(texts, sizes, strict=True)]


def _told(source: int, text: str) -> str:
  """The text of one process, in every process."""
  if jax.process_count() == 1:
    return text
  own = text.encode()
  size = int(_from(source, np.array(len(own))))
  content = np.frombuffer(own[:size].ljust(size, b'\0'), np.uint8)
  return _from(source, content).tobytes().decode()
