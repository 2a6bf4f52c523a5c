"""Floor 5. A trace of some steps: what the host and every device did, for XProf, TensorBoard and Perfetto.

Names in it: `step` with its number, the verbs of a step (sample, score, weigh, update), `evaluate` and `checkpoint` are
of the host; scopes of programs (attention, mlp, head, optimiser …) are of devices. Every process writes its own file.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import jax

from opd_jax.storage.places import Spool

FOLDER = 'profile'


def check(steps: range | None, *, last: int) -> None:
  """Refuses steps that a run does not have.

  Args:
    steps: to be traced.
    last: step of the run.
  """
  if steps is not None and steps[-1] > last:
    raise ValueError(
      f'--profile {_named(steps)}: the run has {last} steps. Name some of them, e.g. '
      f'--profile {max(last - 1, 1)}:{last}.'
    )


class Profiler:
  """Traces some steps of a run.

  Args:
    spool: of the run; the trace is a folder in it.
    steps: which; None traces nothing.
    say: told where it lies.
  """

  def __init__(self, spool: Spool, steps: range | None, say: Callable[[str], None]):
    self.spool, self.steps, self.say = spool, steps, say
    self._is_on = False

  def begin(self, step: int) -> None:
    """Says where nothing is left to trace.

    Args:
      step: that the run goes on behind.
    """
    if self.steps is not None and step >= self.steps[-1]:
      self.say(
        f'--profile {_named(self.steps)}: the run goes on behind step {step}, so nothing is traced'
      )

  @contextmanager
  def step(self, number: int) -> Iterator[None]:
    """Around a step: begins and ends the trace when its turn comes."""
    wanted = self.steps is not None and number in self.steps
    if wanted and not self._is_on:
      options: Any = jax.profiler.ProfileOptions()
      options.python_tracer_level = 0  # every call of Python: a million events, and none of ours
      jax.profiler.start_trace(str(self.spool.folder / FOLDER), profiler_options=options)
      self._is_on = True
    with jax.profiler.StepTraceAnnotation('step', step_num=number):
      yield
    if self.steps is not None and number >= self.steps[-1]:
      self.close()

  def close(self) -> None:
    """Writes the trace, where there is one."""
    if self._is_on:
      self._is_on = False
      jax.profiler.stop_trace()
      self.say(f'the trace of steps {_named(self.steps)} lies in {self.spool.home / FOLDER}')


def _named(steps: range | None) -> str:
  assert steps is not None
  return str(steps[0]) if len(steps) == 1 else f'{steps[0]}:{steps[-1]}'
