"""Floor 2. Sizes of programs: a few, so that each is compiled once."""

import math


def bucket(size: int, *, minimum: int, maximum: int) -> int:
  """The smallest of 1, 2, 3, 4, 6, 8, 12 … that holds `size`, within bounds: programs stay few, waste below a half."""
  power = 1 << math.ceil(math.log2(max(size, 1)))
  near = 3 * power // 4 if power >= 4 and 3 * power // 4 >= size else power
  return min(max(minimum, near), maximum)
