"""Floor 3. What a context may look at: a `Scene` for every row, made of a batch of responses."""

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from opd_jax.data.problems import Problem
from opd_jax.data.tokenizers import Message
from opd_jax.ramps import NO_DECISIONS, Watching
from opd_jax.responses import Responses


class Mate(NamedTuple):
  """Another response to the same question."""

  text: str
  reward: float  # NaN where nobody checked
  feedback: str


class Scene(NamedTuple):
  """What a context may read: one row, and those that answer the same question."""

  problem: Problem
  text: str
  reward: float  # NaN where nobody checked
  feedback: str  # of the verifier
  mates: tuple[Mate, ...]  # without the row itself
  seed: tuple[int, int]  # of the run, and the row's number in it
  step: int  # of the stage
  decisions: Mapping[str, float] = NO_DECISIONS  # where numbers stand that look at metrics

  @property
  def rng(self) -> np.random.Generator:
    """A new generator with the seed of this row: every access starts the same sequence."""
    return np.random.default_rng(self.seed)


Context = Callable[[Scene], Sequence[Message] | None]


def scenes(
  problems: Sequence[Problem],
  texts: Sequence[str],
  rewards: Sequence[float],
  feedback: Sequence[str],
  *,
  groups: Sequence[int],
  rows: Sequence[int],
  seed: int,
  step: int,
  decisions: Mapping[str, float] = NO_DECISIONS,
) -> list[Scene]:
  """The scene of every row of a batch.

  Args:
    problems, texts, rewards, feedback: a row each.
    groups: rows that answer the same question share a number.
    rows: the numbers of the rows in the whole run.
    seed: of the run.
    step: of the stage.
    decisions: as in `ramps.at`.
  """
  members: dict[int, list[int]] = {}
  for number, group in enumerate(groups):
    members.setdefault(int(group), []).append(number)

  def mate(other: int) -> Mate:
    return Mate(texts[other], float(rewards[other]), feedback[other])

  return [
    Scene(
      problem=problems[number],
      text=texts[number],
      reward=float(rewards[number]),
      feedback=feedback[number],
      mates=tuple(mate(other) for other in members[int(groups[number])] if other != number),
      seed=(seed, int(rows[number])),
      step=step,
      decisions=decisions,
    )
    for number in range(len(problems))
  ]


def scenes_of(
  responses: Responses,
  *,
  seed: int,
  step: int,
  decisions: Mapping[str, float] = NO_DECISIONS,
) -> list[Scene]:
  """The scene of every row of some responses; see `scenes`."""
  rollout = responses.rollout
  return scenes(
    responses.problems,
    responses.texts,
    rollout.reward.tolist(),
    responses.feedback,
    groups=rollout.prompt.group.tolist(),
    rows=rollout.prompt.row.tolist(),
    seed=seed,
    step=step,
    decisions=decisions,
  )


def shown(context: Context, scene: Scene, *, judge: str) -> Sequence[Message] | None:
  """What a context shows of a row; where it fails, the error names the judge, the context and the row."""
  try:
    return context(scene)
  except Exception as error:
    row = scene.problem.name or f'row {scene.seed[1]}'
    raise ValueError(
      f'judge {judge}: its context {name_of(context)} fails at {row}: {type(error).__name__}: {error}'
    ) from error


def name_of(context: Context) -> str:
  """What a context is called, behind the function that made it: `solution.context`."""
  name = getattr(context, '__qualname__', type(context).__name__)
  return name.replace('.<locals>', '')


def looks_at(context: Context | None) -> str:
  """Where a context finds all that it shows: 'data', 'mates' (other responses to the question), '' if not known."""
  return getattr(context, 'looks_at', '')


def columns_of(context: Context | None) -> tuple[str, ...]:
  """The columns of the data that every row must have, because the context reads them."""
  return getattr(context, 'columns', ())


def numbers_of(context: Context | None) -> tuple[Watching, ...]:
  """The numbers of a context that look at metrics."""
  return getattr(context, 'numbers', ())
