"""Floor 3. What every judge at work can do; served and foreign ones fit behind the same protocol."""

from collections.abc import Sequence
from typing import Any, Protocol, runtime_checkable

from jaxtyping import Array

from opd_jax.inference.sampler import Model
from opd_jax.judges.contexts import Scene
from opd_jax.types import Rollout, ScoreRequest, Scores, Weights


@runtime_checkable
class WorkingJudge(Protocol):
  """A judge that can be asked. Weights that move are handed in; nothing here remembers any."""

  @property
  def name(self) -> str:
    """As messages and metrics call it."""
    ...

  def prompts(self, scenes: Sequence[Scene]) -> list[list[int] | None]:
    """Tokens that the judge reads before each response; None where it has no opinion."""
    ...

  def score(
    self,
    weights: Weights,
    scenes: Sequence[Scene],
    rollout: Rollout,
    ids: Any,
    request: ScoreRequest,
  ) -> Scores:
    """What the judge tells of every row, where the student is trained; `known` is False where it has no opinion.

    Args:
      weights: the student's, and those of its earlier selves.
      scenes: what is known of each row.
      rollout: what was written.
      ids: the student's likeliest tokens [B, R, C], where they are asked about.
      request: what is wanted.
    """
    ...

  def head(self, weights: Weights) -> Array:
    """The output projection that makes the whole distribution of scored hidden states."""
    ...

  def model(self, weights: Weights) -> Model:
    """The judge as a writer."""
    ...
