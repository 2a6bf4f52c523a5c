"""Floor 3. What every judge at work can do; served and foreign ones fit behind the same protocol."""

from collections.abc import Sequence
from typing import Any, Protocol, runtime_checkable

from jaxtyping import Array

from opd_jax.data.templates import Template
from opd_jax.inference.sampler import Model
from opd_jax.judges.scenes import Scene
from opd_jax.types import Rollout, ScoreRequest, Scores, Weights


@runtime_checkable
class WorkingJudge(Protocol):
  """A judge that can score. Weights that change are arguments; a judge keeps none of them."""

  @property
  def name(self) -> str:
    """Its name in messages and metrics."""
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
    """Scores every row, on the student's layout; `known` is False where the judge has no opinion.

    Args:
      weights: the student's, and those of its snapshots.
      scenes: the scene of each row.
      rollout: the responses.
      ids: the student's top tokens [B, R, C], where the request includes the judge's log-probabilities there.
      request: which scores to return.
    """
    ...

  def head(self, weights: Weights) -> Array:
    """The output projection that makes the whole distribution of scored hidden states."""
    ...

  def model(self, weights: Weights) -> Model:
    """The judge as a model to sample from."""
    ...

  def of_evaluations(self, template: Template) -> 'WorkingJudge':
    """The same judge for evaluations: a row that does not fit its position table is not known, and never refused.

    Args:
      template: of the evaluation; read where the judge names none of its own.
    """
    ...
