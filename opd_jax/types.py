"""Floor 0. The legend of axes and every NamedTuple that crosses `jit`.

Axes, one letter each, everywhere in the library:

    B  trajectories            P  prompt positions        R  response positions
    T  positions of a forward  S  columns of a cache      L  layers
    D  width of a model        V  vocabulary              F  hidden width of an MLP
    N  query heads             K  key-value heads         H  width of a head
    E  experts                 C  kept entries            J  chosen layers    *N any leading axes

`p` is always the student, `q` always the teacher. A mask is True where something counts.
Arrays travel in NamedTuples (they survive `jax.tree.map` under the shape hook), settings in frozen
dataclasses (they hash and never cross `jit`).
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Array, Bool, Float, Int

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


# How a response ended, in the numbering of `Rollout.ended_by`.
ENDINGS = ('running', 'stop', 'budget', 'context', 'repetition')


class TopK(NamedTuple):
  """The likeliest tokens, best first, with their log-probabilities over the full vocabulary."""

  ids: Int[AnyArray, '*N C']
  logp: Float[AnyArray, '*N C']


class Rollout(NamedTuple):
  """What was written. Log-probabilities say of which distribution they are."""

  prompt: Prompts
  response: Int[AnyArray, 'B R']  # right-padded; a stop token is part of the response
  mask: Bool[AnyArray, 'B R']  # True where a token was written and counts
  by_student: Bool[AnyArray, 'B R']  # False where a teacher or a dataset wrote it
  behaviour_logp: Float[AnyArray, 'B R']  # under the distribution drawn from: after every rule
  logp: Float[AnyArray, 'B R']  # under the student that wrote, temperature one, full vocabulary
  entropy: Float[AnyArray, 'B R'] | None  # of that student, where it was recorded
  top_k: TopK | None  # [B, R, C], where it was recorded
  ended_by: Int[AnyArray, ' B']  # index into ENDINGS
  version: Int[AnyArray, ' B']  # stamp of the weights that wrote the row
  reward: Float[AnyArray, ' B']  # verifier's outcome; NaN while nobody has checked


class Scores(NamedTuple):
  """One judge's view of a rollout; what was not asked for is None."""

  logp: Float[AnyArray, 'B R']  # of the written token, temperature one, full vocabulary, float32
  entropy: Float[AnyArray, 'B R'] | None
  top_k: TopK | None  # [B, R, C]
  at_ids: Float[AnyArray, 'B R C'] | None  # log-probabilities of the tokens that were asked about
  hidden: (
    Float[AnyArray, 'B R D'] | None
  )  # states that predict each token; with the head, the whole distribution
  layers: Float[AnyArray, 'B R J D'] | None  # the same after chosen layers
