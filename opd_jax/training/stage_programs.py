"""Floor 5. The programs of a stage, lowered from shapes: nothing runs on a device, and no array is made.

A batch is as wide as the bucket of its longest response, and each width has programs of its own: of judges, method and
gradient. Slots of the sampler are halved as rows end.
"""

import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax

from opd_jax import dealing
from opd_jax.inference.buckets import bucket
from opd_jax.inference.decode_ahead import Lowering
from opd_jax.judges.local import LocalJudge
from opd_jax.training import gradient, metrics, optimiser_step, shapes, writers
from opd_jax.training.runtime import StageRuntime
from opd_jax.training.shapes import NARROWEST, SELF, StageShapes
from opd_jax.training.state import State
from opd_jax.types import ScoreRequest


class Program(NamedTuple):
  """A program of a step; `lower` hands it out before it is compiled."""

  verb: str
  name: str
  lower: Callable[[], jax.stages.Lowered]
  times: float = 1.0  # that a step runs it, at most
  model: str = SELF  # whose weights it reads: the student's, a judge's name, or nobody's

  def compile(self) -> jax.stages.Compiled:
    return self.lower().compile()


def widths(present: int, maximum: int) -> list[int]:
  """The widths of batches other than the present one, the nearest first."""
  size, order = 1, []
  while not order or order[-1] < maximum:
    order.append(bucket(size, minimum=NARROWEST, maximum=maximum))
    size = order[-1] + 1
  place = order.index(present)
  return sorted(order, key=lambda width: abs(order.index(width) - place))[1:]


def at_width(
  runtime: StageRuntime, state: State, seen: StageShapes, width: int
) -> Iterator[Program]:
  """Gradients, terms and scores of batches of a width."""
  whole = shapes.batch_at(seen.batch, width)
  evidence = shapes.evidence_at(seen.evidence, width)
  params, base = shapes.shapes_of((state.params, state.base))
  known = {'config': runtime.config, 'layout': runtime.layout}
  sums = placed_sums(runtime, params)
  diagnose = 'teacher' if 'teacher' in whole.targets else None
  for piece in seen.pieces:
    part = shapes.batch_at(piece.batch, width)
    rows, columns = part.rollout.prompt.tokens.shape
    lower = functools.partial(gradient.add.lower, *sums, params, part, base)
    yield Program(
      'update',
      f'gradient {rows} x ({columns} + {width})',
      functools.partial(lower, **known, tile=None, diagnose=diagnose),
      times=_passes(runtime),
    )
  yield Program('weigh', f'weigh {width}', lambda: runtime.weigh.lower(evidence), model='')
  show = lambda: metrics.of_evidence.lower(evidence, whole.terms)
  yield Program('weigh', f'metrics {width}', show, model='')
  yield from scores(runtime, state, seen, width)


def placed_sums(runtime: StageRuntime, params: Any) -> tuple[Any, Any]:
  """Loss and gradient that microbatches are added to."""
  known = {'config': runtime.config, 'layout': runtime.layout}
  sums = jax.eval_shape(functools.partial(gradient.zero_sums, **known), params)
  like = lambda x, sharding: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding)
  gradients = jax.tree.map(lambda x, leaf: like(x, leaf.sharding), sums.gradient, params)
  return like(sums.loss, runtime.layout.sharding()), gradients


def _passes(runtime: StageRuntime) -> int:
  """Microbatches of a step."""
  stage = runtime.stage
  return stage.updates * stage.minibatches * stage.microbatches


def deals(
  runtime: StageRuntime, seen: StageShapes, width: int, cuts: Sequence[int]
) -> Iterator[Program]:
  """What takes a microbatch, of these widths, out of a batch of this width."""
  whole = gradient.on_devices(shapes.batch_at(seen.batch, width))
  for members, local in {(piece.members, piece.local) for piece in seen.pieces}:
    for cut in cuts:
      lower = functools.partial(dealing.taken.lower, whole, members, layout=runtime.layout)
      name = f'deal {members.shape[0]} of {seen.rows} rows x {cut}'
      lower = functools.partial(lower, width=cut, local=local)
      yield Program('update', name, lower, _passes(runtime), model='')


def scores(runtime: StageRuntime, state: State, seen: StageShapes, width: int) -> Iterator[Program]:
  """Of the student and of every judge, where it is one model."""
  asked: list[tuple[str, LocalJudge, ScoreRequest]] = []
  if runtime.scores_student:
    asked.append((SELF, runtime.student, runtime.stage.method.needs.of_student))
  for name, judge in runtime.judges.items():
    if name in seen.longest:
      for model, request in shapes.models_of(judge, runtime.requests[name]):
        asked.append((name, model, request))
  for name, model, request in asked:
    weights = shapes.shapes_of(model.params(state.weights))
    shape, longest = (seen.rows, width), seen.longest[name]
    for rows, times, lower in model.lowered(weights, shape, longest, request):
      yield Program('score', f'score {model.name} {rows} x {width}', lower, times, model=model.name)


def applies(runtime: StageRuntime, state: State) -> Iterator[Program]:
  """The step of the optimiser."""
  params, optimiser = shapes.shapes_of((state.params, state.optimiser))
  loss, gradients = placed_sums(runtime, params)
  settings = {'optimiser': runtime.stage.optimiser, 'config': runtime.config}
  lower = functools.partial(
    optimiser_step.apply.lower, params, optimiser, loss, gradients, layout=runtime.layout
  )
  lower = functools.partial(lower, **settings)
  yield Program('update', 'apply', lower, runtime.stage.updates * runtime.stage.minibatches)


def of_sampler(
  runtime: StageRuntime, state: State, seen: StageShapes, which: Callable[..., Iterator[Lowering]]
) -> Iterator[Program]:
  """The student's programs where it writes.

  Args:
    which: of `decode_ahead`: all of its `programs`, or the `widest`.
  """
  if not seen.student_writes:
    return
  model = writers.student_model(runtime, state.weights)
  model = model._replace(params=shapes.shapes_of(model.params))
  rows, longest = seen.rows, seen.longest[SELF]
  for name, times, lower in which(model, runtime.sampling, rows=rows, longest=longest):
    yield Program('sample', name, lower, times)
