"""Floor 2. Rounds the sizes of programs up to a short list, so that few programs are compiled."""

import math

import numpy as np

LEAST_ROOM = 64  # columns of the smallest cache


def bucket(size: int, *, minimum: int, maximum: int) -> int:
  """Returns the smallest of 1, 2, 3, 4, 6, 8, 12 … that holds `size`, within bounds: padding stays below a half."""
  power = 1 << math.ceil(math.log2(max(size, 1)))
  near = 3 * power // 4 if power >= 4 and 3 * power // 4 >= size else power
  return min(max(minimum, near), maximum)


def most_columns(needed: int, table: int) -> int:
  """Columns of the largest cache of a batch: an eighth is lost at most, and batches of other prompts share programs.

  >>> [most_columns(needed, 40960) for needed in (40, 72, 17408, 16500)]
  [64, 128, 18432, 18432]
  """
  step = max(LEAST_ROOM, 1 << max(needed.bit_length() - 4, 0))
  return min(-(-needed // step) * step, max(table, 2))


def rooms(most: int) -> list[int]:
  """Columns of a cache while rows grow: an eighth, a quarter and half of the most that they may need, and all of it.

  Each is a program, and a deep model compiles for a quarter of a minute; of the largest, never more than half is empty.

  >>> rooms(4608), rooms(200), rooms(40)
  ([576, 1152, 2304, 4608], [64, 100, 200], [40])
  """
  least = min(LEAST_ROOM, most)
  return sorted({max(-(-most // part), least) for part in (8, 4, 2, 1)})


def sizes_of(slots: int, *, pieces: int) -> list[int]:
  """Rows in flight while they end: halved three times at most, for the same reason.

  Args:
    slots: to begin with.
    pieces: devices that share them.

  >>> sizes_of(64, pieces=1), sizes_of(12, pieces=4), sizes_of(5, pieces=4)
  ([64, 32, 16, 8], [12], [8, 4])
  """
  sizes = [-(-slots // pieces) * pieces]
  while len(sizes) < 4 and sizes[-1] % 2 == 0 and (sizes[-1] // 2) % pieces == 0:
    sizes.append(sizes[-1] // 2)
  return sizes


def rows_of_a_bucket(rows: np.ndarray, *, pieces: int, maximum: int = 1 << 30) -> np.ndarray:
  """The rows, and again the first of them, until their number is a bucket that `pieces` divides."""
  size = bucket(len(rows), minimum=1, maximum=maximum)
  return np.resize(rows, -(-size // pieces) * pieces)


def patience(held: np.ndarray, smallest: int, *, hurry: bool) -> np.int32:
  """Number of free slots that ends a segment: few while rows wait, half of all slots at the end.

  Args:
    held: the row in each slot, -1 where it is free.
    smallest: the fewest slots that there may be.
    hurry: whether rows wait for a slot.
  """
  free = int((held < 0).sum())
  if hurry:
    return np.int32(free + max(len(held) // 16, 1))
  can_shrink = len(held) > smallest
  return np.int32(max(-(-len(held) // 2), free + 1) if can_shrink else len(held))
