"""Floor 2. Rounds the sizes of programs up to a short list, so that few programs are compiled."""

import math

import numpy as np


def bucket(size: int, *, minimum: int, maximum: int) -> int:
  """Returns the smallest of 1, 2, 3, 4, 6, 8, 12 … that holds `size`, within bounds: padding stays below a half."""
  power = 1 << math.ceil(math.log2(max(size, 1)))
  near = 3 * power // 4 if power >= 4 and 3 * power // 4 >= size else power
  return min(max(minimum, near), maximum)


def rows_of_a_bucket(rows: np.ndarray, *, pieces: int, maximum: int = 1 << 30) -> np.ndarray:
  """The rows, and again the first of them, until their number is a bucket that `pieces` divides."""
  size = bucket(len(rows), minimum=1, maximum=maximum)
  return np.resize(rows, -(-size // pieces) * pieces)
