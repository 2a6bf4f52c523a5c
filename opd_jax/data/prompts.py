"""Floor 1. Token rows of unlike length -> one left-padded batch."""

from collections.abc import Sequence

import numpy as np

from opd_jax.types import Prompts


def left_padded(rows: Sequence[Sequence[int]], *, width: int, pad: int, groups: Sequence[int] | None = None) -> Prompts:
  """Prompts of `width` columns; every response will start in column `width`.

  Args:
    rows: the tokens of each prompt; none may be empty or longer than `width`.
    width: P.
    pad: the token that fills the left; no result depends on it.
    groups: which rows answer the same question; None makes each row its own group.
  """
  for number, row in enumerate(rows):
    if not 0 < len(row) <= width:
      raise ValueError(
        f'prompts: row {number} has {len(row)} tokens, a prompt must have 1 to {width} (P). '
        'Raise P, or drop or shorten the row; a prompt is never cut silently.'
      )
  tokens = np.full((len(rows), width), pad, np.int32)
  for filled, row in zip(tokens, rows, strict=True):
    filled[width - len(row) :] = row
  numbers = np.arange(len(rows), dtype=np.int32)
  return Prompts(
    tokens=tokens,
    length=np.array([len(row) for row in rows], np.int32),
    row=numbers,
    group=numbers if groups is None else np.asarray(groups, np.int32),
  )
