"""Floor 3. A context builds a judge's prompt for a row; None leaves the row without a judgement."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from opd_jax.data.problems import Problem
from opd_jax.data.tokenizers import Message
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
) -> list[Scene]:
  """The scene of every row of a batch.

  Args:
    problems, texts, rewards, feedback: a row each.
    groups: rows that answer the same question share a number.
    rows: the numbers of the rows in the whole run.
    seed: of the run.
    step: of the stage.
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
    )
    for number in range(len(problems))
  ]


def scenes_of(responses: Responses, *, seed: int, step: int) -> list[Scene]:
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
  )


def solution(*, introduction: str = '\n\nA correct solution:\n') -> Context:
  """The problem with the data set's solution behind it; no judgement where a problem has none.

  Args:
    introduction: between the question and the solution.
  """

  def context(scene: Scene) -> Sequence[Message] | None:
    problem = scene.problem
    if not isinstance(problem.demonstration, str) or not problem.demonstration:
      return None
    *before, last = problem.messages
    shown = {**last, 'content': last['content'] + introduction + problem.demonstration}
    return (*before, shown)

  return context
