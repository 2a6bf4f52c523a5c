"""Floor 3. A judge with a tokenizer of its own: it reads text in its tokens, and answers by the student's."""

import bisect
import dataclasses
import functools
import hashlib
from collections.abc import Sequence
from typing import Any, NoReturn

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from opd_jax.data.alignment import Aligned, Pair
from opd_jax.data.templates import Template
from opd_jax.inference import foreign
from opd_jax.inference.buckets import bucket
from opd_jax.inference.foreign import Places, Tables
from opd_jax.inference.sampler import Model
from opd_jax.judges.local import LocalJudge
from opd_jax.judges.scenes import Scene
from opd_jax.types import Params, Rollout, ScoreRequest, Scores, Weights


@dataclasses.dataclass(frozen=True, kw_only=True)
class ForeignJudge:
  """See `protocol.WorkingJudge`. What its numbers mean is said in `inference.foreign`.

  Args:
    inner: the same model as a judge of its own tokens.
    pair: both tokenizers.
    columns: entries of the student's vocabulary.
    open_ends: whether a token of the teacher may still go on where both end; see `inference.foreign`.
  """

  inner: LocalJudge
  pair: Pair
  columns: int
  open_ends: bool = True

  @property
  def name(self) -> str:
    return self.inner.name

  def params(self, weights: Weights) -> Params:
    """The weights it judges with."""
    return self.inner.params(weights)

  def prompts(self, scenes: Sequence[Scene]) -> list[list[int] | None]:
    return self.inner.prompts(scenes)

  def head(self, weights: Weights) -> Array:
    self._refuse('its hidden states predict tokens of its own')

  def model(self, weights: Weights) -> Model:
    self._refuse('it writes tokens of its own')

  def _refuse(self, why: str) -> NoReturn:
    raise ValueError(
      f'judge {self.name}: {why}, and the student has another tokenizer. Take a method that compares written tokens or '
      "the teacher's top k, on text of the student, e.g. opd, dpca or bpm."
    )

  def of_evaluations(self, template: Template) -> 'ForeignJudge':
    return dataclasses.replace(self, inner=self.inner.of_evaluations(template))

  def identity(self, weights: Weights) -> str:
    """Hash of the weights and of both tokenizers."""
    settings = (
      self.pair.student.strings(),
      self.pair.end,
      self.pair.longest,
      self.columns,
      self.open_ends,
    )
    return (
      f'{self.inner.identity(weights)}-{hashlib.sha256(repr(settings).encode()).hexdigest()[:16]}'
    )

  def score(
    self,
    weights: Weights,
    scenes: Sequence[Scene],
    rollout: Rollout,
    ids: Any,
    request: ScoreRequest,
  ) -> Scores:
    rows = self.rows_of(rollout)
    prompts = self._with_room(self.prompts(scenes), scenes, rows)
    return self._scored(weights, prompts, rows, rollout, ids, request)

  def fitting(
    self, prompts: Sequence[list[int] | None], scenes: Sequence[Scene], rollout: Rollout
  ) -> list[list[int] | None]:
    """Keeps prompts that leave room for their response in the judge's tokens."""
    return self._with_room(prompts, scenes, self.rows_of(rollout))

  def _with_room(
    self,
    prompts: Sequence[list[int] | None],
    scenes: Sequence[Scene],
    rows: Sequence[Aligned],
  ) -> list[list[int] | None]:
    return self.inner.with_room(prompts, scenes, [len(row.tokens) for row in rows])

  def rows_of(self, rollout: Rollout) -> list[Aligned]:
    """The responses in both kinds of tokens."""
    responses = np.asarray(rollout.response)
    return [
      self.pair.align(row[:length].tolist())
      for row, length in zip(responses, rollout.lengths, strict=True)
    ]

  def score_prompts(
    self,
    weights: Weights,
    prompts: Sequence[list[int] | None],
    rollout: Rollout,
    ids: Any,
    request: ScoreRequest,
  ) -> Scores:
    """Scores responses behind given prompts; a row whose prompt is None is not known."""
    return self._scored(weights, prompts, self.rows_of(rollout), rollout, ids, request)

  def _scored(
    self,
    weights: Weights,
    prompts: Sequence[list[int] | None],
    rows: Sequence[Aligned],
    rollout: Rollout,
    ids: Any,
    request: ScoreRequest,
  ) -> Scores:
    if request.hidden or request.layers:
      self._refuse('hidden states are asked for, and its states predict tokens of its own')
    tokens, places = self._placed(rows, np.asarray(rollout.response))
    own = ScoreRequest(hidden=True, temperature=request.temperature)
    scores = self.inner.score_responses(weights, prompts, tokens, None, own)
    found = foreign.read(
      scores.hidden,
      self.inner.head(weights),
      scores.logp,
      places,
      self._tables,
      np.asarray(rollout.response),
      ids if request.at_student_top_k else None,
      request=request,
      columns=self.columns,
    )
    known = np.array([prompt is not None for prompt in prompts])
    return found._replace(known=found.known & jnp.asarray(known)[:, None])

  def _placed(self, rows: Sequence[Aligned], response: np.ndarray) -> tuple[np.ndarray, Places]:
    """The judge's tokens of every row [B, N], and where the student's stand among them [B, R]."""
    longest = max(len(row.tokens) for row in rows)
    size = bucket(max(longest, 1), minimum=8, maximum=1 << 30)
    shape, width = response.shape, response.shape[1]
    tokens = np.full((len(rows), size), self.pair.teacher.pad, np.int32)
    names = ('place', 'offset', 'last', 'within', 'depth', 'since', 'whole', 'spans')
    sides = {name: np.zeros(shape, np.int32) for name in (*names, 'held', 'low', 'high', 'by')}
    chunk, head = np.full(shape, -1, np.int32), np.full(shape, self.columns, np.int32)
    owner, others = np.full((2, len(rows), size), width, np.int32)
    for number, row in enumerate(rows):
      m, n = len(row.chunk), len(row.tokens)
      tokens[number, :n], owner[number, :n], others[number, :n] = row.tokens, row.owner, row.others
      chunk[number, :m] = row.chunk
      for name in names:
        sides[name][number, :m] = getattr(row, name)
      if n:
        head[number, :m] = self._heads(row)
        for name, values in self._ends(row, response[number, :m]).items():
          sides[name][number, :m] = values
    marks = {name: sides.pop(name).astype(bool) for name in ('whole', 'spans')}
    return tokens, Places(chunk=chunk, head=head, owner=owner, others=others, **sides, **marks)

  def _ends(self, row: Aligned, response: np.ndarray) -> dict[str, np.ndarray]:
    """What the teacher's token may become where each of the student's ends."""
    held = row.tokens[np.maximum(row.within, 0)]
    low, high, since = np.zeros_like(held), np.zeros_like(held), row.since.copy()
    wrote = np.where(row.chunk >= 0, np.arange(len(held)), 0)
    by = response[np.maximum.accumulate(wrote)]  # who writes nothing changes nothing
    for at in np.flatnonzero(row.within >= 0):
      text, spanning = self.pair.written[held[at]], since[at] < 0 or not self.open_ends
      if text is None or (row.whole[at] and not self.open_ends):
        continue
      if spanning and row.whole[at] and by[at] not in self.pair.leaves:
        continue  # a longer token of the student may or may not have been meant
      low[at], high[at] = self._range(text[: row.depth[at]])
      since[at] = -1 if spanning else since[at]
    return {'held': held, 'low': low, 'high': high, 'by': by, 'since': since}

  def _heads(self, row: Aligned) -> np.ndarray:
    """The student's token that has the mass of the teacher's token in which each of its own begins."""
    found = np.full(len(row.chunk), self.columns)
    for at in np.flatnonzero(row.spans):  # nobody else reads it
      cell = self.pair.prefixes[row.offset[at], row.tokens[row.place[at]]]
      found[at] = cell if cell >= 0 else self.columns
    return found

  def _range(self, begin: bytes) -> tuple[int, int]:
    """The tokens that begin with these bytes: from where to where in their order."""
    behind = begin.rstrip(b'\xff')
    behind = behind[:-1] + bytes([behind[-1] + 1]) if behind else None
    order = self._ordered
    return bisect.bisect_left(order, begin), len(order) if behind is None else bisect.bisect_left(
      order, behind
    )

  @functools.cached_property
  def _sorted(self) -> list[tuple[bytes, int]]:
    """What the teacher's tokens write, in the order of their bytes, and which tokens these are."""
    return sorted((text, number) for number, text in enumerate(self.pair.written) if text)

  @functools.cached_property
  def _ordered(self) -> list[bytes]:
    return [text for text, _ in self._sorted]

  @functools.cached_property
  def _tables(self) -> Tables:
    size = self.inner.config.vocab_size
    rank = np.full(size, -1, np.int32)
    rank[[number for _, number in self._sorted]] = np.arange(len(self._sorted))
    same = np.pad(self.pair.same, (0, size - len(self.pair.same)), constant_values=-1)
    return Tables(rank=rank, prefixes=self._padded(self.pair.prefixes), same=same)

  def _padded(self, table: np.ndarray) -> np.ndarray:
    """With the rows of the model's table that stand for nothing; no token of the student is the number `columns`."""
    more = self.inner.config.vocab_size - table.shape[-1]
    table = np.where(table < 0, self.columns, table).astype(np.int32)
    return np.pad(table, (*[(0, 0)] * (table.ndim - 1), (0, more)), constant_values=self.columns)
