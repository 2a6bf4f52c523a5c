"""Floor 0. What several processes of one run do together."""

from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils


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


def any_process(here: bool) -> bool:
  """Whether it is true in any process."""
  return (
    bool(multihost_utils.process_allgather(np.asarray(here)).any())
    if jax.process_count() > 1
    else here
  )
