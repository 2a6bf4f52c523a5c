"""Floor 0. The legend of axes and every NamedTuple that crosses `jit`.

Axes, one letter each, everywhere in the library:

    B  trajectories            P  prompt positions        R  response positions
    T  positions of a forward  S  columns of a cache      L  layers
    D  width of a model        V  vocabulary              F  hidden width of an MLP
    N  query heads             K  key-value heads         H  width of a head
    E  experts                 *N any leading axes

`p` is always the student, `q` always the teacher. A mask is True where something counts.
Arrays travel in NamedTuples (they survive `jax.tree.map` under the shape hook), settings in frozen
dataclasses (they hash and never cross `jit`).
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Array, Int

# Batches are made on the host by numpy and become device arrays on their way into a program.
AnyArray = Array | np.ndarray

# A model's parameters once split from their module: nested dicts of arrays, nothing else.
Params = Mapping[str, Any]


class Prompts(NamedTuple):
  """Questions, ready for a model. Left-padded, so that every response starts in column P."""

  tokens: Int[AnyArray, 'B P']
  length: Int[AnyArray, ' B']  # real tokens; columns before P - length are padding
  row: Int[AnyArray, ' B']  # identity of the trajectory: its random stream hangs on it
  group: Int[AnyArray, ' B']  # trajectories that answer the same question share a number
