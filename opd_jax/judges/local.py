"""Floor 3. A judge whose weights are in this process: the teacher, a reference, or the student itself."""

import dataclasses
import functools
import hashlib
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding
from jax.stages import Lowered
from jaxtyping import Array, Int

from opd_jax import dealing
from opd_jax.data.prompts import left_padded
from opd_jax.data.templates import Template
from opd_jax.data.tokenizers import Tokenizer
from opd_jax.inference import sampler, scorer
from opd_jax.inference.buckets import bucket
from opd_jax.inference.sampler import Model
from opd_jax.judges import prompting
from opd_jax.judges.scenes import Scene
from opd_jax.judges.spec import Judge
from opd_jax.models import transformer
from opd_jax.models.config import ModelConfig
from opd_jax.processes import carried, dealt
from opd_jax.sharding import Layout
from opd_jax.storage.fingerprint import digest
from opd_jax.types import AnyArray, Params, Rollout, ScoreRequest, Scores, Weights


@dataclasses.dataclass(frozen=True, kw_only=True)
class LocalJudge:
  """See `protocol.WorkingJudge`.

  Args:
    name: its name in messages; also the key of its snapshot, where it is an earlier copy of the student.
    spec: its settings in the experiment.
    config, layout: of its model.
    home: layout of the student, where scores are needed.
    columns: entries of the student's vocabulary; a table that is padded to another size is fitted to it.
    tokenizer, template: render its prompts.
    own: its weights; None: the student's, as `spec.refresh` says.
    rows: rows of one pass; at least one on every device.
  """

  name: str
  spec: Judge
  config: ModelConfig
  layout: Layout
  home: Layout
  columns: int
  tokenizer: Tokenizer
  template: Template
  own: Params | None = None
  rows: int = 64

  def params(self, weights: Weights) -> Params:
    """The weights it judges with at this moment."""
    if self.own is not None:
      return self.own
    return weights.student if self.spec.refresh.is_live else weights.snapshots[self.name]

  @property
  def absent_state(self) -> bool:
    """Whether its states end in the constant one for entries that its table lacks; see `scorer.fitted`."""
    return self.config.vocab_size < self.columns

  def head(self, weights: Weights) -> Array:
    head = _head(self.params(weights), config=self.config, layout=self.layout, columns=self.columns)
    return moved(head, self.layout, self.home, rows=False)

  def model(self, weights: Weights) -> Model:
    return sampler.unrolled(Model(self.config, self.layout, self.params(weights)))

  def prompts(self, scenes: Sequence[Scene]) -> list[list[int] | None]:
    """Tokens that it reads in front of each response; None: nothing. Every process renders its share."""

    def rendered(rows: Sequence[int]) -> list[list[int] | None]:
      return prompting.rendered(
        [scenes[row] for row in rows],
        context=self.spec.context,
        template=self.template,
        tokenizer=self.tokenizer,
        judge=self.name,
      )

    return dealt(rendered, len(scenes))

  def score(
    self,
    weights: Weights,
    scenes: Sequence[Scene],
    rollout: Rollout,
    ids: Any,
    request: ScoreRequest,
  ) -> Scores:
    return self.begin(weights, scenes, rollout, ids, request)()

  def begin(
    self,
    weights: Weights,
    scenes: Sequence[Scene],
    rollout: Rollout,
    ids: Any,
    request: ScoreRequest,
  ) -> Callable[[], Scores]:
    """Begins what `score` does, without waiting for devices; what it returns waits, and moves the scores home."""
    prompts = self.fitting(self.prompts(scenes), scenes, rollout)
    return self._begun(weights, prompts, rollout.response, ids, request)

  def score_prompts(
    self,
    weights: Weights,
    prompts: Sequence[list[int] | None],
    rollout: Rollout,
    ids: Any,
    request: ScoreRequest,
  ) -> Scores:
    """Scores responses behind given prompts; a row whose prompt is None is not known."""
    return self.score_responses(weights, prompts, rollout.response, ids, request)

  def score_responses(
    self,
    weights: Weights,
    prompts: Sequence[list[int] | None],
    response: AnyArray,
    ids: Any,
    request: ScoreRequest,
  ) -> Scores:
    """The same, of responses as arrays."""
    return self._begun(weights, prompts, response, ids, request)()

  def _begun(self, weights, prompts, response: AnyArray, ids, request) -> Callable[[], Scores]:
    known = np.array([prompt is not None for prompt in prompts])
    tokens = [prompt if prompt is not None else [0] for prompt in prompts]
    batch = left_padded(tokens, width=self._prompt_columns(max(map(len, tokens))), pad=0)
    there = self.score_arrays(
      self.params(weights), batch.tokens, batch.length, response, ids, request
    )

    def home() -> Scores:
      scores = moved(there, self.layout, self.home, rows=True)
      return scores._replace(known=scores.known & jnp.asarray(known)[:, None])

    return home

  def fitting(
    self, prompts: Sequence[list[int] | None], scenes: Sequence[Scene], rollout: Rollout
  ) -> list[list[int] | None]:
    """Keeps prompts that leave room for their response; refuses or drops the others, as `spec.too_long` says."""
    return self.with_room(prompts, scenes, rollout.lengths.tolist())

  def with_room(
    self, prompts: Sequence[list[int] | None], scenes: Sequence[Scene], lengths: Sequence[int]
  ) -> list[list[int] | None]:
    """The same, for responses of so many tokens."""
    table = self.config.max_positions
    remedy = (
      f'its position table has {table}. Take a judge with a longer table, shorten its context'
    )
    return prompting.with_room(
      prompts,
      scenes,
      lengths,
      room=table,
      too_long=self.spec.too_long,
      judge=self.name,
      remedy=remedy,
    )

  def of_evaluations(self, template: Template) -> 'LocalJudge':
    return dataclasses.replace(
      self,
      spec=dataclasses.replace(self.spec, too_long='unknown'),
      template=self.spec.template or template,
    )

  def score_arrays(self, params: Params, tokens, length, response, ids, request) -> Scores:
    """Scores padded arrays, `rows` at a time, where the judge lies."""
    rows = len(response)
    given = jax.tree.map(self._padded, (tokens, length, response, ids))
    parts = []
    for members in self._passes(rows):
      batch = jax.tree.map(lambda x, members=members: x[members], given)
      parts.append(
        scorer.score(
          params,
          *batch,
          config=self.config,
          layout=self.layout,
          request=request,
          columns=self.columns,
        )
      )
    scores = parts[0] if len(parts) == 1 else dealing.joined(parts, layout=self.layout)
    if len(scores.logp) > rows:
      scores = jax.tree.map(lambda x: x[:rows], scores)
    return scores

  def _passes(self, rows: int) -> list[Int[np.ndarray, ' N']]:
    pieces = self.layout.size('batch')
    return dealing.passes(-(-rows // pieces) * pieces, most=self.rows, pieces=pieces)

  def _padded(self, x: AnyArray) -> np.ndarray:
    """The first row again, until the devices divide the rows."""
    x = np.asarray(x)
    more = -len(x) % self.layout.size('batch')
    return np.concatenate([x, np.repeat(x[:1], more, axis=0)]) if more else x

  def _prompt_columns(self, longest: int) -> int:
    return bucket(longest, minimum=8, maximum=self.config.max_positions)

  def lowered(
    self, params: Params, shape: tuple[int, int], longest: int, request: ScoreRequest
  ) -> Iterator[tuple[int, int, Callable[[], Lowered]]]:
    """The programs that score responses of a shape: their rows, their calls, and themselves, not compiled.

    Args:
      params: its weights, or their shapes.
      shape: B, R.
      longest: tokens of the longest prompt.
      request: which scores.
    """
    whole = lambda *shape: jax.ShapeDtypeStruct(shape, np.int32)
    width, wanted, columns = shape[1], request.at_student_top_k, self._prompt_columns(longest)
    for size, calls in Counter(len(members) for members in self._passes(shape[0])).items():
      ids = whole(size, width, wanted) if wanted else None
      batch = whole(size, columns), whole(size), whole(size, width), ids
      settings = {'config': self.config, 'layout': self.layout, 'columns': self.columns}
      lower = functools.partial(scorer.score.lower, params, *batch, request=request)
      yield size, calls, functools.partial(lower, **settings)

  def identity(self, weights: Weights) -> str:
    """Hash of the weights, the model, the tokenizer and the entries that are compared."""
    config = self.config
    hidden = (config.delta, config.rotary_share) if config.delta else ()
    settings = repr((self.tokenizer.strings(), config, self.columns, *hidden)).encode()
    return f'{digest(self.params(weights))}-{hashlib.sha256(settings).hexdigest()[:16]}'


@functools.partial(jax.jit, static_argnames=('config', 'layout', 'columns'))
def _head(params: Params, *, config: ModelConfig, layout: Layout, columns: int) -> Array:
  head = transformer.bind(config, layout, params).head()
  return scorer.fitted(jnp.zeros((1, 1, head.shape[0]), head.dtype), head, columns)[1]


def moved(tree: Any, layout: Layout, home: Layout, *, rows: bool) -> Any:
  """Moves arrays onto the devices of another layout.

  Args:
    tree: the arrays.
    layout: their present layout.
    home: the layout to move to.
    rows: True shards rows, or replicates them where they do not divide evenly; False shards a head by vocabulary.
  """
  if layout.mesh == home.mesh:
    return tree

  def one(x) -> NamedSharding:
    if not rows:
      return home.sharding(None, 'vocab')
    batch = None if len(x) % home.size('batch') else 'batch'
    return home.sharding(batch, *[None] * (x.ndim - 1))

  return carried(tree, jax.tree.map(one, tree))
