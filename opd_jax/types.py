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
from typing import Any, Literal, NamedTuple

import numpy as np
from jaxtyping import Array, Bool, Float, Int

from opd_jax.static import static

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

# Who wrote a token, in the numbering of `Rollout.writer`.
WRITERS = ('nobody', 'student', 'teacher', 'data')
NOBODY, STUDENT, TEACHER, DATA = range(len(WRITERS))


class TopK(NamedTuple):
  """The likeliest tokens, best first, with their log-probabilities over the full vocabulary."""

  ids: Int[AnyArray, '*N C']
  logp: Float[AnyArray, '*N C']


class Rollout(NamedTuple):
  """What was written. Log-probabilities say of which distribution they are."""

  prompt: Prompts
  response: Int[AnyArray, 'B R']  # right-padded; a stop token is part of the response
  mask: Bool[AnyArray, 'B R']  # True where a token counts; a prefix only where the mix says so
  writer: Int[AnyArray, 'B R']  # index into WRITERS; nobody: padding
  behaviour_logp: Float[AnyArray, 'B R']  # under the distribution drawn from: after every rule
  logp: Float[AnyArray, 'B R']  # under the model that wrote, temperature one, full vocabulary
  entropy: Float[AnyArray, 'B R'] | None  # of that model, where it was recorded
  top_k: TopK | None  # [B, R, C], where it was recorded
  ended_by: Int[AnyArray, ' B']  # index into ENDINGS
  version: Int[AnyArray, ' B']  # stamp of the weights that wrote the row
  reward: Float[AnyArray, ' B']  # verifier's outcome; NaN while nobody has checked

  @property
  def by_student(self) -> Bool[AnyArray, 'B R']:
    return self.writer == STUDENT

  @property
  def lengths(self) -> np.ndarray:
    """Columns of each response up to the last token that anybody wrote; of rollouts in host memory."""
    written = np.asarray(self.writer) != NOBODY
    return np.where(written.any(axis=1), written.shape[1] - np.argmax(written[:, ::-1], axis=1), 0)


@static
class ScoreRequest:
  """What a judge is asked for besides the log-probability of the written token. Requests compose with `|`.

  Args:
    entropy: of the whole distribution.
    top_k: how many of the likeliest tokens, with their log-probabilities.
    at_student_top_k: log-probabilities at this many of the *student's* likeliest tokens.
    hidden: the states that predict each token, after the last norm; with the head, the whole distribution.
    layers: the same after these layers (0 is the first), before the last norm.
    temperature: of the distribution that all these numbers are of.
    across: what `top_k` are of a judge with another tokenizer. 'projected': tokens of the student, whose next token is
      said by what the judge's tokens begin with. 'own': the judge's own tokens where the student's begins, best first;
      the id is that of the student's token that writes the same, or none. 'joint': the same at the last token of a
      chunk, together with the tokens of the chunk before it. With one tokenizer all three are the same.
  """

  entropy: bool = False
  top_k: int = 0
  at_student_top_k: int = 0
  hidden: bool = False
  layers: tuple[int, ...] = ()
  temperature: float = 1.0
  across: Literal['projected', 'own', 'joint'] = 'projected'

  def __post_init__(self):
    if self.across not in ('projected', 'own', 'joint'):
      raise ValueError(
        f"ScoreRequest: across is 'projected', 'own' or 'joint', got {self.across!r}."
      )
    if self.top_k < 0 or self.at_student_top_k < 0 or not self.temperature > 0:
      raise ValueError(
        f'ScoreRequest: top_k and at_student_top_k must not be negative, temperature must be above 0; got {self}.'
      )

  def __or__(self, other: 'ScoreRequest') -> 'ScoreRequest':
    if PLAIN in (self, other):
      return other if self == PLAIN else self
    if self.temperature != other.temperature:
      raise ValueError(
        f'ScoreRequest: one judge cannot answer at temperatures {self.temperature} and {other.temperature} at once. '
        'Ask under two names.'
      )
    kinds = sorted({request.across for request in (self, other) if request.top_k})
    if len(kinds) > 1:
      raise ValueError(
        f'ScoreRequest: one judge cannot answer with a top k that is {" and ".join(kinds)} at once. Ask under '
        'two names.'
      )
    return ScoreRequest(
      entropy=self.entropy or other.entropy,
      top_k=max(self.top_k, other.top_k),
      at_student_top_k=max(self.at_student_top_k, other.at_student_top_k),
      hidden=self.hidden or other.hidden,
      layers=tuple(sorted({*self.layers, *other.layers})),
      temperature=self.temperature,
      across=(self if self.top_k or not other.top_k else other).across,
    )


PLAIN = ScoreRequest()  # nothing but the log-probability of the written token


class Scores(NamedTuple):
  """One judge's view of a rollout; what was not asked for is None."""

  logp: Float[AnyArray, 'B R']  # of the written token, full vocabulary, float32
  known: Bool[AnyArray, 'B R']  # False for tokens that the judge did not score
  entropy: Float[AnyArray, 'B R'] | None = None
  top_k: TopK | None = None  # [B, R, C]
  at_ids: TopK | None = (
    None  # [B, R, C]: the ids that were asked about, and what the judge gives them
  )
  hidden: Float[AnyArray, 'B R D'] | None = None  # states that predict each token
  layers: Float[AnyArray, 'B R J D'] | None = None  # the same after chosen layers
  chunk: Int[AnyArray, 'B R'] | None = (
    None  # number of the chunk of each token, -1: of none; None: each is one
  )


class Weights(NamedTuple):
  """The weights of a run that move: of the student, and of judges that are earlier selves of it."""

  student: Params
  snapshots: Mapping[str, Params]
