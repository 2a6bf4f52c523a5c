"""Floor 5. Programs of a stage for batches of other lengths: compiled in the background, before a batch needs them.

They are known once one batch has been weighed; JAX finds them when a batch needs them.
"""

import os
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import chain, zip_longest
from typing import Any

import jax

from opd_jax.inference import decode_ahead
from opd_jax.training import shapes, stage_programs
from opd_jax.training.runtime import StageRuntime
from opd_jax.training.shapes import Example
from opd_jax.training.stage_programs import Program
from opd_jax.training.state import RunPosition, State

THREADS = 4


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
      program.compile()
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
  """In turns of the sampler, and of everything behind it; several models that write or judge are left to the batch."""
  seen = shapes.of_example(runtime, example, position)
  behind = _behind_the_sampler(runtime, state, seen)
  sampler = ()
  if runtime.stage.mix.beside is None:
    sampler = stage_programs.of_sampler(runtime, state, seen, decode_ahead.programs)
  turns = zip_longest(behind, sampler)
  return [program for program in chain.from_iterable(turns) if program is not None]


def _behind_the_sampler(
  runtime: StageRuntime, state: State, seen: shapes.StageShapes
) -> Iterator[Program]:
  """Scores, terms and gradients of batches of other widths."""
  others = stage_programs.widths(seen.width, runtime.sampling.budget)
  for width in others:
    yield from stage_programs.at_width(runtime, state, seen, width)
  for width in (*others, seen.width):  # a microbatch may be narrower than its batch
    narrow = [each for each in (*others, seen.width) if each <= width]
    cuts = narrow if runtime.stage.microbatches > 1 else [width]
    yield from stage_programs.deals(runtime, seen, width, cuts)
