"""Floor 3. Rows that a writer elsewhere has written: tokens come back, and perhaps their log-probabilities."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool

from opd_jax.types import ENDINGS, NOBODY, TEACHER, Prompts, Rollout


class Text(NamedTuple):
  """One response.

  Args:
    tokens: of the student's vocabulary, with the token that ended it.
    logp: of each under the model that wrote; None: not told.
    ended_by: one of `ENDINGS`.
  """

  tokens: Sequence[int]
  logp: Sequence[float] | None
  ended_by: str


class DistantWriter(NamedTuple):
  """Who writes rows elsewhere.

  Args:
    write: responses to the rows with these numbers in the batch.
    is_plain: whether no rule changes the model's distribution, so that its log-probabilities are those drawn from.
  """

  write: Callable[[Sequence[int]], Sequence[Text]]
  is_plain: bool


def rollout_of(
  writer: DistantWriter,
  rows: Bool[np.ndarray, ' B'],
  prompts: Prompts,
  *,
  budget: int,
  version: int,
) -> Rollout:
  """What it writes in some rows.

  Args:
    writer: who writes.
    rows: which of the batch.
    prompts: what the student reads in these rows.
    budget: most tokens of a response.
    version: stamp of the student's weights.
  """
  texts = writer.write(np.flatnonzero(rows).tolist())
  shape = (len(texts), budget)
  tokens, mask, logp = np.zeros(shape, np.int32), np.zeros(shape, bool), np.full(shape, np.nan)
  for row, text in enumerate(texts):
    size = len(text.tokens)
    tokens[row, :size], mask[row, :size] = text.tokens, True
    if text.logp is not None:
      logp[row, :size] = text.logp
  logp = logp.astype(np.float32)
  return Rollout(
    prompt=prompts,
    response=tokens,
    mask=mask,
    writer=np.where(mask, TEACHER, NOBODY).astype(np.int32),
    behaviour_logp=logp if writer.is_plain else np.full_like(logp, np.nan),
    logp=logp,
    entropy=None,
    top_k=None,
    ended_by=np.array([ENDINGS.index(text.ended_by) for text in texts], np.int32),
    version=np.full(len(texts), version, np.int32),
    reward=np.full(len(texts), np.nan, np.float32),
  )
