"""Floor 0. Bytes: of arrays, and as a person reads them."""

from typing import Any


def bytes_of(tree: Any) -> int:
  """Of all arrays of a tree together, or of what their shapes say."""
  import jax  # here, so that the command line can tell sizes before it needs JAX

  return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))


def memory(size: float | int) -> str:
  """Bytes as a person reads them.

  >>> memory(3 * 2**30)
  '3.0 GiB'
  """
  for unit in ('B', 'KiB', 'MiB', 'GiB'):
    if size < 1024:
      return f'{size:.1f} {unit}' if unit != 'B' else f'{size:.0f} B'
    size /= 1024
  return f'{size:.1f} TiB'
