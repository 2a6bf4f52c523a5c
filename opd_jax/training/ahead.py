"""Floor 5. Programs of a stage for batches of other lengths: compiled in the background, before a batch needs them.

A batch is as wide as the bucket of its longest response, and each width has programs of its own: of judges, method and
gradient. Slots of the sampler are halved as rows end. All of these are known once one batch has been weighed: they are
lowered from its shapes, so nothing runs on a device, no array is made, and JAX finds them when a batch needs them.
"""

import functools
import os
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import chain, zip_longest
from typing import Any, NamedTuple

import jax
import numpy as np

from opd_jax import dealing
from opd_jax.inference import decode_ahead
from opd_jax.inference.buckets import bucket
from opd_jax.judges.local import LocalJudge
from opd_jax.method import Evidence
from opd_jax.responses import Responses
from opd_jax.training import gradient, metrics, writers
from opd_jax.training.gradient import Batch
from opd_jax.training.runtime import StageRuntime
from opd_jax.training.state import RunPosition, State
from opd_jax.types import ScoreRequest

NARROWEST = 8  # columns of a batch, as `responses.trimmed` cuts
THREADS = 4
Program = Callable[[], Any]  # compiles it


class Example(NamedTuple):
  """A weighed batch, of which shapes are looked at."""

  responses: Responses
  evidence: Evidence
  batch: Batch


class Ahead:
  """The background in which programs of a stage are compiled; leaving it drops those that have not begun.

  Args:
    tell: told how far it is.
    threads: that compile; None: `threads_of` this machine. With none, programs are compiled when they are needed.
  """

  def __init__(self, tell: Callable[[str], None], *, threads: int | None = None):
    self._tell, self._lock, self._done = tell, threading.Lock(), 0
    self._stage: int | None = None  # whose programs they are
    self._begun: list[Future] = []
    if threads is None:
      threads = threads_of(jax.default_backend(), os.cpu_count() or 1)
    self._pool = ThreadPoolExecutor(threads, 'ahead') if threads else None

  def __enter__(self) -> 'Ahead':
    return self

  def __exit__(self, *_: Any) -> None:
    if self._pool is not None:
      self._pool.shutdown(wait=True, cancel_futures=True)

  def begin(
    self, runtime: StageRuntime, state: State, example: Example, position: RunPosition
  ) -> None:
    """Compiles what other batches of a stage need, the likeliest first: once, and not what an earlier stage needed.

    Args:
      state: behind the example.
      position: of the example.
    """
    if runtime.stage.method.forks is not None or jax.process_count() > 1:
      return  # how many rows are forks is not known before; several processes compile in one order
    if self._pool is None or runtime.number == self._stage:
      return
    for program in self._begun:
      program.cancel()
    began = time.monotonic()
    programs = programs_of(runtime, state, example, position)
    self._stage, self._done = runtime.number, 0
    self._begun = [
      self._pool.submit(self._make, program, len(programs), began) for program in programs
    ]

  def _make(self, program: Program, count: int, began: float) -> None:
    try:
      program()
    except Exception as error:  # the batch that needs it says it again, where it can stop the run
      reason = str(error).splitlines() or [type(error).__name__]
      self._tell(f'compiling ahead: one program failed ({reason[0][:120]})')
    with self._lock:
      self._done += 1
    seconds = time.monotonic() - began
    self._tell(f'compiling ahead: {self._done} of {count} programs, {seconds:.0f} s')


def threads_of(platform: str, cores: int) -> int:
  """How many threads compile ahead. None where steps are computed by the processor: they would take turns with it.

  On two cores, compiling ahead made steps twice and a short run 1.6 times as long.
  """
  return 0 if platform == 'cpu' else max(1, min(THREADS, cores - 1))


# --- which ------------------------------------------------------------------------------------------


def programs_of(
  runtime: StageRuntime, state: State, example: Example, position: RunPosition
) -> list[Program]:
  """What compiles one program each: in turns of the sampler, and of everything behind it."""
  behind = _behind_the_sampler(runtime, state, example, position)
  turns = zip_longest(behind, _of_the_sampler(runtime, state, example))
  return [program for program in chain.from_iterable(turns) if program is not None]


def widths(present: int, maximum: int) -> list[int]:
  """The widths of batches other than the present one, the nearest first."""
  size, order = 1, []
  while not order or order[-1] < maximum:
    order.append(bucket(size, minimum=NARROWEST, maximum=maximum))
    size = order[-1] + 1
  place = order.index(present)
  return sorted(order, key=lambda width: abs(order.index(width) - place))[1:]


def _behind_the_sampler(
  runtime: StageRuntime, state: State, example: Example, position: RunPosition
) -> Iterator[Program]:
  """Scores, terms and gradients of batches of other widths."""
  present = example.responses.rollout.response.shape[1]
  scorings = [*_scorings(runtime, state, example, position)]
  evidence, batch = shapes_of(example.evidence), shapes_of(example.batch)
  pieces = _pieces(runtime, example.batch)
  params, base = shapes_of((state.params, state.base))
  layout, known = {'layout': runtime.layout}, {'config': runtime.config, 'layout': runtime.layout}
  sums = shapes_of(gradient.zero_sums(state.params, **known))
  diagnose = 'teacher' if 'teacher' in example.batch.targets else None
  others = widths(present, runtime.sampling.budget)
  for width in others:
    whole, seen = _batch_at(batch, width), _evidence_at(evidence, width)
    for piece, *_ in pieces.values():
      lower = functools.partial(gradient.add.lower, sums.loss, sums.gradient, params)
      yield _compiled(lower, _batch_at(piece, width), base, **known, tile=None, diagnose=diagnose)
    yield _compiled(runtime.weigh.lower, seen)
    yield _compiled(metrics.of_evidence.lower, seen, whole.terms)
    yield from (functools.partial(scoring, width) for scoring in scorings)
  for width in (*others, present):  # a microbatch may be narrower than its batch
    whole = _batch_at(batch, width)
    narrow = [each for each in (*others, present) if each <= width]
    for members, local in {(members, local) for _, members, local in pieces.values()}:
      for cut in narrow if runtime.stage.microbatches > 1 else [width]:
        lower = functools.partial(dealing.taken.lower, gradient.on_devices(whole), members)
        yield _compiled(lower, **layout, width=cut, local=local)


def _compiled(lower: Callable[..., Any], *shapes: Any, **settings: Any) -> Program:
  return lambda: lower(*shapes, **settings).compile()


def _pieces(runtime: StageRuntime, batch: Batch) -> dict[int, tuple[Batch, Any, bool]]:
  """Shapes of a microbatch and of the numbers of its rows, and whether these stay, by columns of its prompts."""
  stage, pieces = runtime.stage, {}
  rows = np.arange(len(batch.rollout.response) // stage.minibatches)
  parts = gradient.parts_of(batch, stage.microbatches, layout=runtime.layout, rows=rows)
  for members, piece in parts:
    columns = piece.rollout.prompt.tokens.shape[1]
    local = dealing.stay(
      members, rows=len(batch.rollout.response), pieces=runtime.layout.size('batch')
    )
    pieces.setdefault(columns, (shapes_of(piece), shapes_of(members), local))
  return pieces


def _scorings(
  runtime: StageRuntime, state: State, example: Example, position: RunPosition
) -> Iterator[Callable[[int], None]]:
  """What compiles the scorer of each judge for a width; judges of several models are left to the batch."""
  responses, scenes = example.responses, runtime.scenes(example.responses, position)
  if runtime.scores_student:
    request, prompts = runtime.stage.method.needs.of_student, responses.rollout.prompt
    longest = int(np.asarray(prompts.length).max())
    yield functools.partial(_scoring, runtime.student, state, len(scenes), longest, request)
  for name, judge in runtime.judges.items():
    if isinstance(judge, LocalJudge):
      longest = max((len(prompt) for prompt in judge.prompts(scenes) if prompt), default=1)
      request = runtime.requests[name]
      yield functools.partial(_scoring, judge, state, len(scenes), longest, request)


def _scoring(
  judge: LocalJudge, state: State, rows: int, longest: int, request: ScoreRequest, width: int
) -> None:
  for lowered in judge.lowered(
    shapes_of(judge.params(state.weights)), (rows, width), longest, request
  ):
    lowered.compile()


def _of_the_sampler(runtime: StageRuntime, state: State, example: Example) -> Iterator[Program]:
  """The student's decoding programs: slots are halved, and their room grows, as rows end and go on."""
  if not example.responses.rollout.by_student.any() or runtime.stage.mix.beside is not None:
    return
  model = writers.student_model(runtime, state.weights)
  model = model._replace(params=shapes_of(model.params))
  rollout = example.responses.rollout
  longest = int(np.asarray(rollout.prompt.length).max())
  yield from decode_ahead.programs(
    model, runtime.sampling, rows=len(rollout.response), longest=longest
  )


# --- shapes -----------------------------------------------------------------------------------------


def shapes_of(tree: Any) -> Any:
  """Shape, type and place of every array."""

  def one(x: Any) -> jax.ShapeDtypeStruct:
    if isinstance(x, jax.Array):
      placed = x.sharding if x.committed else None
      return jax.ShapeDtypeStruct(
        x.shape, x.dtype, sharding=placed, weak_type=getattr(x, 'weak_type', False)
      )
    dtype = jax.dtypes.canonicalize_dtype(np.asarray(x).dtype)
    return jax.ShapeDtypeStruct(np.shape(x), dtype)

  return jax.tree.map(one, tree)


def _at(tree: Any, width: int) -> Any:
  """The same of responses of another width: the second axis is that of the response."""

  def one(x: jax.ShapeDtypeStruct) -> jax.ShapeDtypeStruct:
    return x if len(x.shape) < 2 else x.update(shape=(x.shape[0], width, *x.shape[2:]))

  return jax.tree.map(one, tree)


def _rollout_at(rollout: Any, width: int) -> Any:
  return _at(rollout._replace(prompt=None), width)._replace(prompt=rollout.prompt)


def _evidence_at(evidence: Evidence, width: int) -> Evidence:
  return evidence._replace(
    rollout=_rollout_at(evidence.rollout, width),
    **{name: _at(getattr(evidence, name), width) for name in ('mask', 'scores', 'measures')},
  )


def _batch_at(batch: Batch, width: int) -> Batch:
  targets = {
    name: _at(target._replace(head=None), width)._replace(head=target.head)
    for name, target in batch.targets.items()
  }
  known, terms = _at(batch.known, width), _at(batch.terms, width)
  return Batch(_rollout_at(batch.rollout, width), known, targets, terms)
