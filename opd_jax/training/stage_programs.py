"""Floor 5. The programs of a stage, lowered from shapes: nothing runs on a device, and no array is made.

A batch is as wide as the bucket of its longest response, and each width has programs of its own: of judges, method and
gradient. Slots of the sampler are halved as rows end.
"""

import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax

from opd_jax import dealing
from opd_jax.evaluation.evaluator import Evaluation
from opd_jax.inference import decode_ahead
from opd_jax.inference.buckets import bucket
from opd_jax.inference.decode_ahead import Lowering
from opd_jax.inference.sampler import Model, Sampling
from opd_jax.judges.local import LocalJudge
from opd_jax.rollouts import writing
from opd_jax.training import gradient, metrics, optimiser_step, shapes, writers
from opd_jax.training.runtime import StageRuntime
from opd_jax.training.shapes import NARROWEST, SELF, StageShapes
from opd_jax.training.state import State
from opd_jax.types import ScoreRequest

WRITER = 'writer'
Which = Callable[..., Iterator[Lowering]]


class Program(NamedTuple):
  """A program of a step; `lower` hands it out before it is compiled."""

  verb: str
  name: str
  lower: Callable[[], jax.stages.Lowered]
  times: float = 1.0  # that a step runs it, at most
  model: str = SELF  # whose weights it reads: of the student, a judge, a writer's copy, nobody
  loop: int = 1  # times that it runs what the compiler shows once: a loop that ends when rows have

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
  runtime: StageRuntime, state: State, seen: StageShapes, which: Which
) -> Iterator[Program]:
  """The student's programs where it writes.

  Args:
    which: of `decode_ahead`: all of its `programs`, or the `widest`.
  """
  if not seen.student_writes:
    return
  model = writers.student_model(runtime, state.weights)
  model = model._replace(params=shapes.shapes_of(model.params))
  yield from _written(
    'sample', model, runtime.sampling, rows=seen.rows, longest=seen.longest[SELF], which=which
  )


def of_teacher(runtime: StageRuntime, state: State, seen: StageShapes) -> Iterator[Program]:
  """Where the teacher writes whole responses."""
  if not runtime.stage.teacher_writes:
    return
  for judge, _ in shapes.models_of(runtime.judges['teacher'], ScoreRequest()):
    model, longest = judge.model(state.weights), seen.longest['teacher']
    sampling = writing.within(runtime.sampling, model, runtime.config.vocab_size)
    for program in _written('sample', model, sampling, rows=seen.rows, longest=longest):
      yield program._replace(name=f'{judge.name}: {program.name}', model=judge.name)


def of_evaluation(
  runtime: StageRuntime, state: State, evaluation: Evaluation, longest: int
) -> Iterator[Program]:
  """Writing of its responses, and scoring where a teacher is there."""
  model = writers.student_model(runtime, state.weights)
  sampling = evaluation.sampling(runtime.tokenizer, runtime.config.vocab_size)
  rows = evaluation.problems * evaluation.samples
  for program in _written('evaluate', model, sampling, rows=rows, longest=longest):
    yield program._replace(name=f'{evaluation.label}: {program.name}')
  if 'teacher' not in runtime.judges or evaluation.decoding.rules:
    return
  for judge, _ in shapes.models_of(runtime.judges['teacher'], ScoreRequest()):
    shape, params = (rows, evaluation.budget), shapes.shapes_of(judge.params(state.weights))
    for size, times, lower in judge.lowered(params, shape, longest, ScoreRequest()):
      name = f'{evaluation.label}: score {judge.name} {size} x {evaluation.budget}'
      yield Program('evaluate', name, lower, times, model=judge.name)


def _written(
  verb: str,
  model: Model,
  sampling: Sampling,
  *,
  rows: int,
  longest: int,
  which: Which = decode_ahead.widest,
) -> Iterator[Program]:
  """The programs with which a model writes."""
  for name, times, lower in which(model, sampling, rows=rows, longest=longest):
    loop = sampling.segment if name.startswith('decode') else 1
    yield Program(verb, name, lower, times, model=WRITER, loop=loop)
