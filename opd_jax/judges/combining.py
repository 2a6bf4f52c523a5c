"""Floor 3. One judge made of several: signed sums of logits.

Σ c_i (h_i W_i) is one product of concatenated states with stacked heads, and (Σ c_i h_i) W where the parts share their
weights. So the vocabulary pass needs to know nothing of it.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
from jaxtyping import Array

from opd_jax.data.templates import Template
from opd_jax.inference import scorer
from opd_jax.inference.sampler import Model
from opd_jax.judges.local import LocalJudge
from opd_jax.judges.scenes import Scene
from opd_jax.types import AnyArray, Rollout, ScoreRequest, Scores, Weights


@dataclasses.dataclass(frozen=True, kw_only=True)
class CombinedJudge:
  """See `protocol.WorkingJudge`. A row is known where every part knows it."""

  name: str
  parts: tuple[tuple[float, LocalJudge], ...]

  def prompts(self, scenes: Sequence[Scene]) -> list[list[int] | None]:
    """Those of the first part: each part reads its own."""
    return self.parts[0][1].prompts(scenes)

  def of_evaluations(self, template: Template) -> 'CombinedJudge':
    parts = tuple((coefficient, part.of_evaluations(template)) for coefficient, part in self.parts)
    return dataclasses.replace(self, parts=parts)

  def score(
    self,
    weights: Weights,
    scenes: Sequence[Scene],
    rollout: Rollout,
    ids: Any,
    request: ScoreRequest,
  ) -> Scores:
    assert not request.layers  # `build.check_request` refuses them
    states, known = [], jnp.ones(rollout.response.shape, bool)
    for coefficient, part in self.parts:
      scores = part.score(weights, scenes, rollout, None, ScoreRequest(hidden=True))
      assert scores.hidden is not None
      states.append(_times(coefficient, scores.hidden, part.absent_state))
      known = known & scores.known
    one_head = self._share_weights(weights)
    hidden = sum(states[1:], states[0]) if one_head else jnp.concatenate(states, axis=-1)
    scores = scorer.read(hidden, self.head(weights), rollout.response, ids, request=request)
    return scores._replace(known=known)

  def _share_weights(self, weights: Weights) -> bool:
    first = self.parts[0][1].params(weights)
    return all(part.params(weights) is first for _, part in self.parts)

  def head(self, weights: Weights) -> Array:
    if self._share_weights(weights):
      return self.parts[0][1].head(weights)
    return jnp.concatenate([part.head(weights) for _, part in self.parts])

  def model(self, weights: Weights) -> Model:
    raise ValueError(
      f'judge {self.name}: it is made of several models, and text is wanted of one. Bind one judge as the teacher.'
    )


def _times(coefficient: float, states: AnyArray, absent: bool) -> Array:
  """Scaled states; in float32 unless the factor is exact in any type.

  Args:
    absent: the last state is the one that takes mass from entries which the model does not have. Those stay without
      mass whatever the sign of the part.
  """
  kind = states.dtype
  if coefficient not in (1.0, -1.0):
    kind = jnp.promote_types(jnp.float32, kind)
  factor = jnp.full(states.shape[-1], coefficient, kind)
  factor = factor.at[-1].set(max(abs(coefficient), 1.0)) if absent else factor
  return factor * states.astype(kind)
