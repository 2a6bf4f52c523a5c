"""Floor 5. Shapes, types and places of a weighed batch: of one that was seen, or of one that nobody has seen yet."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from opd_jax import dealing
from opd_jax.inference.buckets import bucket
from opd_jax.judges.cached import CachedJudge
from opd_jax.judges.combining import CombinedJudge
from opd_jax.judges.local import LocalJudge
from opd_jax.judges.protocol import WorkingJudge
from opd_jax.judges.remote import ServedJudge
from opd_jax.judges.retokenising import ForeignJudge
from opd_jax.judges.routing import RoutedJudge
from opd_jax.judges.spec import is_foreign
from opd_jax.losses.vocab_shard import with_heads
from opd_jax.method import Evidence, targets_of
from opd_jax.responses import Responses
from opd_jax.sharding import Layout
from opd_jax.training import gradient
from opd_jax.training.gradient import Batch
from opd_jax.training.runtime import StageRuntime
from opd_jax.training.state import RunPosition, State
from opd_jax.types import Prompts, Rollout, ScoreRequest, Scores, TopK

SELF = 'student'
NARROWEST = 8  # columns of a batch, as `responses.trimmed` cuts


class Example(NamedTuple):
  """A weighed batch, of which shapes are looked at."""

  responses: Responses
  evidence: Evidence
  batch: Batch


class Piece(NamedTuple):
  """A microbatch, the numbers of its rows, and whether these stay on their devices."""

  batch: Batch
  members: Any
  local: bool


class StageShapes(NamedTuple):
  """Of a weighed batch."""

  evidence: Evidence
  batch: Batch
  pieces: tuple[Piece, ...]  # those that differ
  longest: Mapping[str, int]  # tokens of the longest prompt that each judge, or the student, reads
  student_writes: bool

  @property
  def rows(self) -> int:
    return self.batch.rollout.response.shape[0]

  @property
  def width(self) -> int:
    return self.batch.rollout.response.shape[1]


def of_example(runtime: StageRuntime, example: Example, position: RunPosition) -> StageShapes:
  """Of a batch that was seen."""
  responses, scenes = example.responses, runtime.scenes(example.responses, position)
  prompts = responses.rollout.prompt
  longest = {SELF: int(np.asarray(prompts.length).max())}
  for name, judge in runtime.judges.items():
    if isinstance(judge, LocalJudge):
      longest[name] = max((len(prompt) for prompt in judge.prompts(scenes) if prompt), default=1)
  stage, pieces = runtime.stage, {}
  rows = np.arange(len(responses.rollout.response) // stage.minibatches)
  parts = gradient.parts_of(example.batch, stage.microbatches, layout=runtime.layout, rows=rows)
  for members, piece in parts:
    local = dealing.stay(
      members, rows=len(responses.rollout.response), pieces=runtime.layout.size('batch')
    )
    columns = piece.rollout.prompt.tokens.shape[1]
    pieces.setdefault((columns, local), Piece(shapes_of(piece), shapes_of(members), local))
  return StageShapes(
    shapes_of(example.evidence),
    shapes_of(example.batch),
    tuple(pieces.values()),
    longest,
    bool(responses.rollout.by_student.any()),
  )


# --- of a batch that nobody has seen ----------------------------------------------------------------


def blank(runtime: StageRuntime, state: State, longest: int) -> StageShapes:
  """Of a batch whose responses are all as long as their budget.

  Args:
    runtime: judges may have shapes for weights.
    state: or its shapes.
    longest: tokens of the longest prompt.
  """
  stage, layout = runtime.stage, runtime.layout
  evidence = _evidence(runtime, state, longest, stage.prompts * stage.samples)
  if stage.method.forks is not None:
    forks = jax.eval_shape(stage.method.forks.plan, evidence)
    evidence = _evidence(runtime, state, longest, len(evidence.mask) + len(forks.row))
    evidence = evidence._replace(forks=forks)
  heads = {
    name: _placed(jax.eval_shape(judge.head, state.weights), layout, 'embed', 'vocab')
    for name, judge in runtime.judges.items()
    if evidence.scores[name].hidden is not None
  }
  terms = _rows(jax.eval_shape(runtime.weigh, evidence), layout)
  batch = Batch(evidence.rollout, evidence.mask, targets_of(evidence, heads), terms)
  devices = layout.size('batch')
  rows = len(evidence.mask)
  size = gradient.rows_of_part(rows // stage.minibatches, stage.microbatches, devices=devices)
  members = jax.ShapeDtypeStruct((size,), np.int32)
  piece = Piece(rows_at(batch, size), members, stage.minibatches == 1 and not rows % devices)
  names = (SELF, *runtime.judges)
  return StageShapes(
    evidence, batch, (piece,), dict.fromkeys(names, longest), stage.mix.needs_student
  )


def _evidence(runtime: StageRuntime, state: State, longest: int, rows: int) -> Evidence:
  stage, width = runtime.stage, runtime.sampling.budget

  def array(dtype: Any, *shape: int) -> Any:
    return jax.ShapeDtypeStruct((rows, *shape), dtype)

  number, real = np.dtype('int32'), np.dtype('float32')
  columns = bucket(longest, minimum=8, maximum=runtime.config.max_positions)
  rollout = Rollout(
    prompt=Prompts(array(number, columns), *[array(number)] * 3),
    response=array(number, width),
    mask=array(np.dtype(bool), width),
    writer=array(number, width),
    behaviour_logp=array(real, width),
    logp=array(real, width),
    entropy=None,
    top_k=None,
    ended_by=array(number),
    version=array(number),
    reward=array(real),
  )
  scores = {name: _scores(runtime, name, rows) for name in (SELF, *runtime.judges)}
  needs = stage.method.needs
  measures = dict.fromkeys(needs.measures, array(real, width))
  key = jax.eval_shape(lambda: jax.random.key(0))
  step = jax.ShapeDtypeStruct((), np.int32)
  make = lambda rollout, scores, measures, memory, step, key: Evidence.of(
    rollout, scores, needs, measures=measures, memory=memory, step=step, key=key
  )
  evidence = jax.eval_shape(make, rollout, scores, measures, shapes_of(state.memory), step, key)
  return evidence._replace(
    rollout=rollout, scores=scores, mask=_rows(evidence.mask, runtime.layout), memory=state.memory
  )


def _scores(runtime: StageRuntime, name: str, rows: int) -> Scores:
  """What a judge, or the student, says of so many rows."""
  width = runtime.sampling.budget
  if name != SELF:
    request, states, kind = runtime.requests[name], 0, 'float32'
    if request.hidden or request.layers:
      states, kind = _states(runtime.judges[name])
  else:
    request, states, kind = (
      runtime.stage.method.needs.of_student,
      runtime.config.width,
      runtime.config.dtype,
    )

  def array(dtype: Any, *more: int) -> Any:
    return jax.ShapeDtypeStruct((rows, width, *more), np.dtype(dtype))

  top = lambda k: TopK(array('int32', k), array('float32', k)) if k else None
  found = Scores(
    logp=array('float32'),
    known=array(bool),
    entropy=array('float32') if request.entropy else None,
    top_k=top(request.top_k),
    at_ids=top(request.at_student_top_k),
    hidden=array(jnp.dtype(kind), states) if request.hidden else None,
    layers=array(jnp.dtype(kind), len(request.layers), states) if request.layers else None,
    chunk=array('int32') if name != SELF and is_foreign(runtime.stage.judges[name]) else None,
  )
  scored = name != SELF or runtime.scores_student
  return _rows(found, runtime.layout) if scored else found


def _states(judge: WorkingJudge) -> tuple[int, str]:
  """Width and type of the hidden states that a judge hands out."""
  models = [model for model, _ in models_of(judge, ScoreRequest())]
  width = sum(model.config.width + model.absent_state for model in models)
  return width, 'float32' if isinstance(judge, CombinedJudge) else models[0].config.dtype


def models_of(judge: WorkingJudge, request: ScoreRequest) -> list[tuple[LocalJudge, ScoreRequest]]:
  """The models here that a judge asks, and what it asks them."""
  if isinstance(judge, ServedJudge):
    return []
  if isinstance(judge, LocalJudge):
    return [(judge, request)]
  if isinstance(judge, CachedJudge):
    return models_of(judge.inner, request)
  if isinstance(judge, ForeignJudge):
    return [(judge.inner, ScoreRequest(hidden=True))]
  if isinstance(judge, RoutedJudge):
    return [pair for part in judge.table.values() for pair in models_of(part, request)]
  assert isinstance(judge, CombinedJudge)
  return [(model, ScoreRequest(hidden=True)) for model in judge.models.values()]


# --- shapes -----------------------------------------------------------------------------------------


def shapes_of(tree: Any) -> Any:
  """Shape, type and place of every array."""

  def one(x: Any) -> jax.ShapeDtypeStruct:
    if isinstance(x, jax.ShapeDtypeStruct):
      return x
    if isinstance(x, jax.Array):
      placed = x.sharding if x.committed else None
      return jax.ShapeDtypeStruct(
        x.shape, x.dtype, sharding=placed, weak_type=getattr(x, 'weak_type', False)
      )
    dtype = jax.dtypes.canonicalize_dtype(np.asarray(x).dtype)
    return jax.ShapeDtypeStruct(np.shape(x), dtype)

  return jax.tree.map(one, tree)


def _rows(tree: Any, layout: Layout) -> Any:
  """Arrays that have rows, cut by them."""
  return jax.tree.map(lambda x: _placed(x, layout, 'batch', *[None] * (len(x.shape) - 1)), tree)


def _placed(x: Any, layout: Layout, *names: str | None) -> Any:
  return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=layout.sharding(*names))


def _columns(tree: Any, width: int) -> Any:
  """The same of responses of another width: the second axis is that of the response."""

  def one(x: jax.ShapeDtypeStruct) -> jax.ShapeDtypeStruct:
    return x if len(x.shape) < 2 else x.update(shape=(x.shape[0], width, *x.shape[2:]))

  return jax.tree.map(one, tree)


def _rollout_at(rollout: Any, width: int) -> Any:
  return _columns(rollout._replace(prompt=None), width)._replace(prompt=rollout.prompt)


def evidence_at(evidence: Evidence, width: int) -> Evidence:
  return evidence._replace(
    rollout=_rollout_at(evidence.rollout, width),
    **{name: _columns(getattr(evidence, name), width) for name in ('mask', 'scores', 'measures')},
  )


def batch_at(batch: Batch, width: int) -> Batch:
  known, targets, terms = _columns(gradient.on_devices(batch), width)
  rollout = _rollout_at(batch.rollout, width)
  return Batch(rollout, known, with_heads(targets, batch.targets), terms)


def rows_at(batch: Batch, rows: int) -> Batch:
  """The same of another number of rows."""
  fewer = lambda x: x.update(shape=(rows, *x.shape[1:]))
  known, targets, terms = jax.tree.map(fewer, gradient.on_devices(batch))
  rollout = jax.tree.map(fewer, batch.rollout)
  return Batch(rollout, known, with_heads(targets, batch.targets), terms)
