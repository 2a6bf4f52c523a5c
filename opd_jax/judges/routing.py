"""Floor 3. Several judges, each for the rows whose route names it; none scores a row of another."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from opd_jax.data.templates import Template
from opd_jax.inference.buckets import rows_of_a_bucket
from opd_jax.inference.sampler import Model
from opd_jax.judges.cached import CachedJudge
from opd_jax.judges.protocol import WorkingJudge
from opd_jax.judges.retokenising import ForeignJudge
from opd_jax.judges.scenes import Scene
from opd_jax.types import AnyArray, Rollout, ScoreRequest, Scores, Weights


@dataclasses.dataclass(frozen=True, kw_only=True)
class RoutedJudge:
  """See `protocol.WorkingJudge`."""

  name: str
  table: Mapping[str, WorkingJudge]
  pieces: int = 1  # devices that share the rows of a batch

  def rows_of(self, scenes: Sequence[Scene]) -> dict[str, np.ndarray]:
    """Which rows each judge has; a row without a judge is refused by name."""
    rows: dict[str, list[int]] = {route: [] for route in self.table}
    for number, scene in enumerate(scenes):
      problem = scene.problem
      if problem.route not in rows:
        raise ValueError(
          f'judge {self.name}: {problem.name} has the route {problem.route!r}, the table has {sorted(rows)}. Every row '
          'needs a judge.'
        )
      rows[problem.route].append(number)
    return {route: np.array(members) for route, members in rows.items() if members}

  def prompts(self, scenes: Sequence[Scene]) -> list[list[int] | None]:
    prompts: list[list[int] | None] = [None] * len(scenes)
    for route, rows in self.rows_of(scenes).items():
      part = self.table[route].prompts([scenes[row] for row in rows])
      for row, prompt in zip(rows.tolist(), part, strict=True):
        prompts[row] = prompt
    return prompts

  def of_evaluations(self, template: Template) -> 'RoutedJudge':
    table = {route: judge.of_evaluations(template) for route, judge in self.table.items()}
    return dataclasses.replace(self, table=table)

  def score(
    self,
    weights: Weights,
    scenes: Sequence[Scene],
    rollout: Rollout,
    ids: Any,
    request: ScoreRequest,
  ) -> Scores:
    merged: Scores | None = None
    rows_by_route = self.rows_of(scenes)
    for route, judge in self.table.items():
      if route not in rows_by_route:
        continue
      rows = rows_of_a_bucket(rows_by_route[route], pieces=self.pieces)
      part = jax.tree.map(lambda x, rows=rows: np.asarray(x)[rows], rollout)
      part_ids = None if ids is None else np.asarray(ids)[rows]
      scores = judge.score(weights, [scenes[row] for row in rows], part, part_ids, request)
      if scores.hidden is not None:
        scores = scores._replace(hidden=self._beside(scores.hidden, route, weights))
      if scores.chunk is None and self.is_foreign:
        alone = jnp.broadcast_to(
          jnp.arange(scores.logp.shape[1], dtype=jnp.int32), scores.logp.shape
        )
        scores = scores._replace(chunk=alone)  # of one tokenizer, every token
      if merged is None:
        merged = jax.tree.map(lambda x: jnp.zeros((len(scenes), *x.shape[1:]), x.dtype), scores)
      merged = jax.tree.map(lambda full, x, rows=rows: full.at[rows].set(x), merged, scores)
    assert merged is not None
    return merged

  @property
  def is_foreign(self) -> bool:
    """Whether any of them has a tokenizer of its own."""
    inner = [each.inner if isinstance(each, CachedJudge) else each for each in self.table.values()]
    return any(isinstance(each, ForeignJudge) for each in inner)

  def _widths(self, weights: Weights) -> dict[str, int]:
    shape = lambda judge: jax.eval_shape(judge.head, weights).shape
    return {route: shape(judge)[0] for route, judge in self.table.items()}

  def _beside(self, hidden: AnyArray, route: str, weights: Weights) -> Array:
    """Pads one judge's states with zeros for the other judges, so that the stacked head gives its own logits."""
    widths = self._widths(weights)
    names = list(widths)
    before = sum(widths[name] for name in names[: names.index(route)])
    after = sum(widths.values()) - before - widths[route]
    return jnp.pad(hidden, ((0, 0), (0, 0), (before, after)))

  def head(self, weights: Weights) -> Array:
    return jnp.concatenate([judge.head(weights) for judge in self.table.values()])

  def model(self, weights: Weights) -> Model:
    raise ValueError(
      f'judge {self.name}: it routes rows to several judges, but only one judge can write text. Bind one judge, e.g. '
      "experiment.Stage.judges = {'teacher': @judges.frozen()}."
    )
