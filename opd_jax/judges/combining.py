"""Floor 3. One judge made of several: signed sums of logits, with means over those that have an opinion of a row.

Σ c_i (h_i W_i) is one product of concatenated states with stacked heads, and (Σ c_i h_i) W where parts share their
weights. So the vocabulary pass needs to know nothing of it, also where the c_i differ from row to row.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from opd_jax import ramps
from opd_jax.data.templates import Template
from opd_jax.inference import scorer
from opd_jax.inference.buckets import rows_of_a_bucket
from opd_jax.inference.sampler import Model
from opd_jax.judges.local import LocalJudge
from opd_jax.judges.scenes import Scene
from opd_jax.ramps import Number
from opd_jax.types import AnyArray, Rollout, ScoreRequest, Scores, Weights


class Part(NamedTuple):
  """A coefficient, and the judges whose mean it multiplies. Judges of one name share their weights."""

  coefficient: Number
  members: tuple[LocalJudge, ...]


class Reading(NamedTuple):
  """What one member does in a batch."""

  member: LocalJudge
  prompts: list[list[int] | None]
  factors: Float[np.ndarray, ' B']  # of its logits; zero where it has no opinion


@dataclasses.dataclass(frozen=True, kw_only=True)
class CombinedJudge:
  """See `protocol.WorkingJudge`. A row is known where every part has a member that knows it."""

  name: str
  parts: tuple[Part, ...]

  @property
  def models(self) -> dict[str, LocalJudge]:
    """One judge for each model among the members."""
    return {member.name: member for part in self.parts for member in part.members}

  def prompts(self, scenes: Sequence[Scene]) -> list[list[int] | None]:
    """Those of the first judge, where every part has an opinion: each judge reads its own."""
    read = [[member.prompts(scenes) for member in part.members] for part in self.parts]
    known = [
      all(any(prompts[row] is not None for prompts in part) for part in read)
      for row in range(len(scenes))
    ]
    return [prompt if here else None for prompt, here in zip(read[0][0], known, strict=True)]

  def of_evaluations(self, template: Template) -> 'CombinedJudge':
    parts = tuple(
      Part(part.coefficient, tuple(each.of_evaluations(template) for each in part.members))
      for part in self.parts
    )
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
    readings, known = self._readings(scenes, rollout)
    states = {name: _nothing(member, rollout) for name, member in self.models.items()}
    for reading in readings:
      name = reading.member.name
      states[name] = _with_reading(states[name], reading, weights, rollout)
    hidden = jnp.concatenate(list(states.values()), axis=-1)
    home = next(iter(self.models.values())).home
    scores = scorer.read(
      hidden, self.head(weights), rollout.response, ids, layout=home, request=request
    )
    return scores._replace(known=scores.known & jnp.asarray(known)[:, None])

  def _readings(
    self, scenes: Sequence[Scene], rollout: Rollout
  ) -> tuple[list[Reading], Bool[np.ndarray, ' B']]:
    """What every member does, and which rows are known."""
    step, known, found = scenes[0].step, np.ones(len(scenes), bool), []
    for part in self.parts:
      prompts = [each.fitting(each.prompts(scenes), scenes, rollout) for each in part.members]
      there = np.array([[prompt is not None for prompt in each] for each in prompts])
      known &= there.any(axis=0)
      factors = ramps.at(part.coefficient, step) * there / np.maximum(there.sum(axis=0), 1)
      found += [*zip(part.members, prompts, factors, there, strict=True)]
    readings = []
    for member, prompts, factors, there in found:
      here = known & there
      kept = [prompt if each else None for prompt, each in zip(prompts, here, strict=True)]
      readings.append(Reading(member, kept, np.where(here, factors, 0.0)))
    return readings, known

  def head(self, weights: Weights) -> Array:
    return jnp.concatenate([member.head(weights) for member in self.models.values()])

  def model(self, weights: Weights) -> Model:
    raise ValueError(
      f'judge {self.name}: it is made of several models, and text is wanted of one. Bind one judge as the teacher.'
    )


def _nothing(member: LocalJudge, rollout: Rollout) -> Array:
  """States of a model that nobody has read yet."""
  kind = jnp.promote_types(jnp.float32, member.config.dtype)
  width = member.config.width + member.absent_state
  return jnp.zeros((*rollout.response.shape, width), kind)


def _with_reading(total: Array, reading: Reading, weights: Weights, rollout: Rollout) -> Array:
  """The sum of states with those of one member; it reads no row of which it has no opinion."""
  member, rows = reading.member, np.flatnonzero([each is not None for each in reading.prompts])
  if not rows.size:
    return total
  pieces = member.home.size('batch')
  read = rows_of_a_bucket(rows, pieces=pieces, maximum=len(reading.prompts))
  scores = member.score_prompts(
    weights,
    [reading.prompts[row] for row in read],
    jax.tree.map(lambda x: np.asarray(x)[read], rollout),
    None,
    ScoreRequest(hidden=True),
  )
  assert scores.hidden is not None
  states = scores.hidden[: len(rows)]
  scaled = times(reading.factors[rows], states, absent=member.absent_state)
  return total.at[rows].add(scaled.astype(total.dtype))


def times(factors: Float[np.ndarray, ' B'], states: AnyArray, *, absent: bool) -> Array:
  """States [B, R, D] times the factor of their row, in float32 at least.

  Args:
    absent: the last state is the one that takes mass from entries which the model does not have. Those stay without
      mass whatever the sign of the part.
  """
  wide = jnp.promote_types(jnp.float32, states.dtype)
  factor = jnp.asarray(factors, wide)[:, None, None]
  factor = jnp.broadcast_to(factor, (len(factors), 1, states.shape[-1]))
  factor = factor.at[..., -1].set(jnp.maximum(jnp.abs(factor[..., -1]), 1.0)) if absent else factor
  return factor * states.astype(wide)
