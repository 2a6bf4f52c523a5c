"""Floor 3. Collects requests that came in at the same time into passes of one model, in one thread.

Every pass of the scorer has as many rows, filled up where there are fewer, and the columns of a row depend on its own
length: what is said of a row does not depend on who else asked.
"""

import queue
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from typing import Any, NamedTuple

import jax
import numpy as np

from opd_jax.data.prompts import left_padded
from opd_jax.inference import sampler, scorer
from opd_jax.inference.buckets import bucket
from opd_jax.inference.decoding import Decoding
from opd_jax.inference.sampler import Model, Sampling
from opd_jax.types import Rollout, ScoreRequest, Scores

GATHERED = 0.004  # seconds that the first of several requests waits for the others
MOST = 512  # requests of one round


class Row(NamedTuple):
  """A row to score: tokens behind `start` are judged, and C further tokens at each of them."""

  tokens: list[int]
  start: int
  ids: np.ndarray | None  # [R, C]


class Draft(NamedTuple):
  """A row to write."""

  prompt: list[int]
  decoding: Decoding
  budget: int
  seed: int


class Written(NamedTuple):
  """What was written."""

  tokens: list[int]
  logps: list[float]
  ended_by: int


class Passes:
  """One model at work for many requests.

  Args:
    model: which.
    rows: of a pass of the scorer.
    top_k: likeliest tokens that every pass finds.
    slots: rows that are written at a time.
    seed: of the texts; a request's own seed is added.
  """

  def __init__(self, model: Model, *, rows: int, top_k: int, slots: int, seed: int = 0):
    self.model, self.rows, self.top_k, self.slots = model, rows, top_k, slots
    self.scored = self.passes = 0  # rows, and rounds that were made of them
    self._key = jax.random.key(seed)
    self._waiting: queue.Queue[tuple[Row | Draft, Future] | None] = queue.Queue()
    self._thread = threading.Thread(target=self._work, name='passes', daemon=True)
    self._thread.start()

  def ask(self, what: Row | Draft) -> Future:
    """The scores of a row or what was written, once they are there."""
    answer: Future = Future()
    self._waiting.put((what, answer))
    return answer

  def close(self) -> None:
    """Ends the thread behind what waits."""
    self._waiting.put(None)
    self._thread.join()

  def _work(self) -> None:
    while (first := self._waiting.get()) is not None:
      round_, ended = [first], False
      while len(round_) < MOST:
        try:
          more = self._waiting.get(timeout=GATHERED)
        except queue.Empty:
          break
        if more is None:
          ended = True
          break
        round_.append(more)
      for (kind, _), members in _alike(round_).items():
        make = self._scores if kind is Row else self._written
        _settle([answer for _, answer in members], lambda m=make, x=members: m([w for w, _ in x]))
      if ended:
        return

  def _scores(self, rows: Sequence[Row]) -> list[Scores]:
    self.scored, self.passes = self.scored + len(rows), self.passes + 1
    ids = None if rows[0].ids is None else [_filled(row.ids) for row in rows]
    return scorer.score_rows(
      self.model.params,
      [row.tokens[: row.start] for row in rows],
      [row.tokens[row.start :] for row in rows],
      config=self.model.config,
      layout=self.model.layout,
      request=ScoreRequest(top_k=self.top_k),
      rows=self.rows,
      ids=ids,
    )

  def _written(self, drafts: Sequence[Draft]) -> list[Written]:
    """One text each. A row's random stream hangs on its seed, so others do not change it."""
    prompts = [draft.prompt for draft in drafts]
    width = bucket(max(map(len, prompts)), minimum=8, maximum=1 << 30)
    batch = left_padded(prompts, width=width, pad=0)
    batch = batch._replace(row=np.array([draft.seed for draft in drafts], np.int32))
    budgets = [draft.budget for draft in drafts]
    budget = bucket(max(budgets), minimum=8, maximum=1 << 30)
    sampling = Sampling(decoding=drafts[0].decoding, budget=budget, slots=self.slots)
    rollout: Rollout = sampler.generate(
      sampler.unrolled(self.model), batch, self._key, sampling=sampling, budgets=budgets
    )
    cut = lambda x, row: np.asarray(x)[row][: rollout.lengths[row]].tolist()
    return [
      Written(cut(rollout.response, row), cut(rollout.logp, row), int(rollout.ended_by[row]))
      for row in range(len(drafts))
    ]


def _alike(round_: Sequence[tuple[Row | Draft, Future]]) -> dict[Any, list]:
  """Requests that one program answers: rows with as many ids, texts under the same rules."""
  found: dict[Any, list] = {}
  for what, answer in round_:
    if isinstance(what, Row):
      kind = (Row, None if what.ids is None else _columns(what.ids.shape[1]))
    else:
      kind = (Draft, what.decoding)
    found.setdefault(kind, []).append((what, answer))
  return found


def _columns(count: int) -> int:
  return bucket(count, minimum=1, maximum=1 << 30)


def _filled(ids: np.ndarray | None) -> np.ndarray:
  assert ids is not None
  return np.pad(ids, ((0, 0), (0, _columns(ids.shape[1]) - ids.shape[1])))


def _settle(answers: Sequence[Future], make: Callable[[], Sequence[Any]]) -> None:
  """Hands out what was made, or what went wrong, to everybody who waits."""
  try:
    made = make()
  except Exception as error:
    for answer in answers:
      answer.set_exception(error)
    return
  for answer, each in zip(answers, made, strict=True):
    answer.set_result(each)
