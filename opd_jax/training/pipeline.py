"""Floor 5. Batches that are written and not yet learnt from; judges on devices of their own score them meanwhile.

With `Stage.staleness` s the weights of step k write batch k + s, so batch k is of weights s batches older, fewer where
the stage begins. Which weights write a batch follows from its number alone. A checkpoint holds the batches that are on
their way, so a run that was killed goes on with the same ones.

    staleness 0   student  write 1 ─────────────▶ update 1   write 2 ─────────────▶ update 2
                  teacher           score 1                           score 2
    staleness 1   student  write 1   write 2   update 1   write 3   update 2
                  teacher            score 1     score 2 ────────▶    score 3

One process scores in a thread for each judge. Several processes must begin the programs of a device in the same order,
so they begin them in one thread each and do not wait for them; judges that wait themselves score when their turn comes.
"""

import base64
import io
import json
from collections import deque
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import jax
import numpy as np

from opd_jax.data.curriculum import Curriculum
from opd_jax.data.problems import Problem
from opd_jax.data.stream import Stream
from opd_jax.judges.client import Ended
from opd_jax.judges.local import LocalJudge
from opd_jax.processes import to_host
from opd_jax.responses import Responses
from opd_jax.training import scoring, verbs
from opd_jax.training.runtime import StageRuntime
from opd_jax.training.state import RunPosition
from opd_jax.types import Prompts, Rollout, Scores, TopK, Weights

Flight = Sequence[Mapping[str, Any]]  # batches on their way, as a checkpoint holds them


class Written(NamedTuple):
  """A batch that is written."""

  responses: Responses
  position: RunPosition  # at which it is learnt from; stream and numbers that move stand as when it was written
  begun: dict[str, scoring.Begun]


class Pipeline:
  """The batches of a stage, in order.

  Args:
    runtime: the stage.
    stream: of its problems; behind those of the flight.
    flight: batches of a checkpoint.
  """

  def __init__(self, runtime: StageRuntime, stream: Stream | Curriculum, flight: Flight = ()):
    self.runtime, self.stream = runtime, stream
    self._waiting: deque[Written] = deque()
    self._pools = {}
    self._taken: Written | None = None
    if runtime.stage.staleness and jax.process_count() == 1:
      self._pools = {name: ThreadPoolExecutor(1, name) for name in runtime.apart}
    behind = stream.state()
    for record in flight:
      position = RunPosition(**record['position'])
      stream.restore(position.stream or behind)
      problems = runtime.take(stream, position)
      self._enqueue(_responses_of(record, problems, runtime.stage.samples), position)
    stream.restore(behind)

  def __enter__(self) -> 'Pipeline':
    return self

  def __exit__(self, *_: Any) -> None:
    for pool in self._pools.values():
      pool.shutdown(wait=True, cancel_futures=True)

  @property
  def flight(self) -> list[dict[str, Any]]:
    """What a checkpoint holds of the batches on their way."""
    return [_record_of(written) for written in self._waiting]

  def take(self, weights: Weights, position: RunPosition) -> Written:
    """The batch of a step; those that these weights have to write are written first."""
    stage, self._taken = self.runtime.stage, None
    if self._waiting:
      self._begin_compared(self._waiting[0], weights)
    end = min(position.stage_step + stage.staleness + 1, stage.steps)
    for number in range(position.stage_step + len(self._waiting), end):
      self._write(weights, position, number - position.stage_step)
    self._taken = self._waiting.popleft()
    return self._taken

  def give_back(self, position: RunPosition) -> RunPosition:
    """The batch that was taken is on its way again: its step has not been made. Returns where the run stands."""
    if not self.runtime.stage.staleness:
      return position  # from which the batch is taken, and written, again
    if self._taken is not None:
      self._waiting.appendleft(self._taken)
    return position._replace(stream=self.stream.state())

  def _write(self, weights: Weights, position: RunPosition, ahead: int) -> None:
    """Writes the batch that is learnt from so many steps later."""
    rows, here = self.runtime.stage.prompts * self.runtime.stage.samples, self.stream.state()
    later = position._replace(
      stage_step=position.stage_step + ahead,
      step=position.step + ahead,
      rows=position.rows + ahead * rows,
      stream=here,
    )
    problems = self.runtime.take(self.stream, later)
    try:
      responses = verbs.sample(self.runtime, weights, problems, later, version=position.step)
    except Ended:  # nobody has written it
      self.stream.restore(here)
      raise
    self._enqueue(responses, later)

  def _enqueue(self, responses: Responses, position: RunPosition) -> None:
    written = Written(responses, position, {})
    self._waiting.append(written)
    if self.runtime.stage.staleness:
      for name in self.runtime.apart:
        if not self.runtime.requests[name].at_student_top_k:
          self._begin(written, name, None)

  def _begin_compared(self, written: Written, weights: Weights) -> None:
    """Judges that are asked about the present student's own tokens begin before the next batch is written."""
    asked = {name: self.runtime.requests[name].at_student_top_k for name in self.runtime.apart}
    if not any(asked.values()):
      return
    own = scoring.student_scores(self.runtime, weights, written.responses.rollout)
    assert own.top_k is not None
    written.begun['student'] = lambda: own
    ids = to_host(own.top_k.ids)
    for name, count in asked.items():
      if count:
        self._begin(written, name, ids[..., :count])

  def _begin(self, written: Written, name: str, ids: Any) -> None:
    """Begins the scores of a judge that needs no weights of the run."""
    runtime, judge = self.runtime, self.runtime.judges[name]
    scenes = runtime.scenes(written.responses, written.position)
    what = Weights({}, {}), scenes, written.responses.rollout, ids, runtime.requests[name]
    if name not in self._pools:
      if isinstance(judge, LocalJudge):
        begun = judge.begin(*what)

        def home() -> Scores:
          with runtime.clock.waiting(name):
            return jax.block_until_ready(begun())

        written.begun[name] = home
      return

    def score() -> Scores:
      with runtime.clock.busy(name):
        return jax.block_until_ready(judge.score(*what))

    future = self._pools[name].submit(score)

    def result() -> Scores:
      with runtime.clock.waiting(name, busy=False):
        return future.result()

    written.begun[name] = result


# --- in a checkpoint --------------------------------------------------------------------------------

TEXTS = 'texts', 'feedback', 'outcomes', 'second'


def _record_of(written: Written) -> dict[str, Any]:
  """A batch as JSON holds it; its problems are taken from the stream again."""
  rollout, stream = written.responses.rollout, io.BytesIO()
  top = (
    {}
    if rollout.top_k is None
    else {f'top_k.{name}': x for name, x in rollout.top_k._asdict().items()}
  )
  prompt = {f'prompt.{name}': x for name, x in rollout.prompt._asdict().items()}
  plain = {name: x for name, x in rollout._asdict().items() if name not in ('prompt', 'top_k')}
  arrays = {name: np.asarray(x) for name, x in {**plain, **prompt, **top}.items() if x is not None}
  np.savez_compressed(stream, allow_pickle=False, **arrays)
  return {
    'position': written.position._asdict(),
    'texts': json.dumps({name: getattr(written.responses, name) for name in TEXTS}),
    'arrays': base64.b64encode(stream.getvalue()).decode(),
  }


def _responses_of(record: Mapping[str, Any], problems: list[Problem], samples: int) -> Responses:
  with np.load(io.BytesIO(base64.b64decode(record['arrays']))) as stored:
    arrays: dict[str, np.ndarray] = dict(stored)
  part = lambda name: {
    key.removeprefix(f'{name}.'): x for key, x in arrays.items() if key.startswith(f'{name}.')
  }
  top = part('top_k')
  plain = {name: x for name, x in arrays.items() if '.' not in name}
  rollout = Rollout(
    **{'entropy': None, **plain},
    prompt=Prompts(**part('prompt')),
    top_k=TopK(**top) if top else None,
  )
  repeated = [problem for problem in problems for _ in range(samples)]
  return Responses(repeated, rollout, **json.loads(record['texts']))
