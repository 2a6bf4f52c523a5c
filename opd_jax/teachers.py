"""Floor 3. Who judges: which weights, where they lie, what they are shown, and how a judge that is the student moves.

A `Judge` is what an experiment says; a `Seat` is a judge at work. Whatever a judge is shown, what it tells is indexed
by response position, so no prompt of its own can misalign a loss.
"""

import dataclasses
import functools
import hashlib
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from opd_jax.data.problems import Problem
from opd_jax.data.prompts import left_padded
from opd_jax.data.templates import Template
from opd_jax.data.tokenizers import Message, Tokenizer
from opd_jax.inference import sampler, scorer
from opd_jax.models import transformer
from opd_jax.models.config import ModelConfig
from opd_jax.processes import to_host
from opd_jax.rollouts import lengths
from opd_jax.sharding import Layout
from opd_jax.storage.fingerprint import digest
from opd_jax.types import AnyArray, Params, Rollout, Scores, TopK


@dataclasses.dataclass(frozen=True, kw_only=True)
class Refresh:
  """φ ← φ + rate · (θ - φ), every so many steps, after the update."""

  rate: float
  every: int = 1

  def __post_init__(self):
    if not 0 <= self.rate <= 1 or self.every < 1:
      raise ValueError(
        f'Refresh: rate must lie in [0, 1] and every must be at least 1, got {self}.'
      )

  @property
  def is_live(self) -> bool:
    """It is the student itself: nothing need be kept."""
    return self.rate == 1 and self.every == 1

  def is_due(self, step: int) -> bool:
    return self.rate > 0 and step % self.every == 0


NEVER = Refresh(rate=0.0)


def never() -> Refresh:
  """The student as it was when the stage began."""
  return NEVER


def ema(*, rate: float) -> Refresh:
  """An exponential moving average; its mean lag is (1 - rate) / rate steps."""
  return Refresh(rate=rate)


def every(steps: int) -> Refresh:
  """A copy of the student, renewed every so many steps."""
  return Refresh(rate=1.0, every=steps)


def live() -> Refresh:
  """The student as it is."""
  return Refresh(rate=1.0)


@functools.partial(jax.jit, donate_argnames=('old',))
def refreshed(old: Params, new: Params, rate: Float[Array, '']) -> Params:
  """The judge's weights after one refresh; with rate 1 exactly the student's."""
  return jax.tree.map(
    lambda phi, theta: jnp.where(rate == 1, theta, phi + rate * (theta - phi)), old, new
  )


# What a judge is shown: (problem, texts of its group, their rewards, its number) -> messages; None: no judgement.
Context = Callable[[Problem, Sequence[str], Sequence[float], int], Sequence[Message] | None]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Judge:
  """Somebody who says how likely it finds every token of a response.

  Args:
    weights: folder, hub id or preset; None: the student's own, moved as `refresh` says.
    refresh: how a judge that is the student follows it.
    layout: where it lies; None: where the student does.
    template: how it is addressed; None: as the student is.
    context: what it is shown instead of the plain problem.
    cache: folder that keeps what it told, by judge, tokenizer and tokens; only for judges that never change.
    dtype: of its parameters and activations; None: as it is stored.
  """

  weights: str | None = None
  refresh: Refresh = NEVER
  layout: Layout | None = None
  template: Template | None = None
  context: Context | None = None
  cache: str | None = None
  dtype: str | None = None

  def __post_init__(self):
    if self.cache is not None and self.weights is None:
      raise ValueError(
        'Judge: a cache needs a judge that never changes; this one is the student itself.'
      )
    if self.layout is not None and self.weights is None:
      raise ValueError(
        'Judge: the student lies where it is trained; only a judge with weights of its own has a layout.'
      )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Routed:
  """Several judges: each problem goes to the one its route names."""

  table: tuple[tuple[str, Judge], ...]


def frozen(weights: str, **options: Any) -> Judge:
  """A model that never changes: folder, hub id or preset."""
  return Judge(weights=weights, **options)


def itself(*, refresh: Refresh = NEVER, **options: Any) -> Judge:
  """The student: as it was at the beginning of the stage, or as `refresh` says."""
  return Judge(refresh=refresh, **options)


def routed(**table: Judge) -> Routed:
  """One judge for each route of the data."""
  return Routed(table=tuple(sorted(table.items())))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Seat:
  """A judge at work. `params` are asked for anew in every step: those of a self-teacher move."""

  judge: Judge
  config: ModelConfig
  layout: Layout
  tokenizer: Tokenizer
  template: Template
  params: Callable[[], Params]
  rows: int = 64  # per pass

  def head(self) -> Array:
    return _head(self.params(), config=self.config, layout=self.layout)

  def prompts(
    self, problems: Sequence[Problem], texts: Sequence[str], rewards: Sequence[float], groups
  ) -> list:
    """Tokens that each row's judge reads before the response; None where it does not judge."""
    shown, context = [], self.judge.context
    for number, problem in enumerate(problems):
      messages: Sequence[Message] | None = problem.messages
      if context is not None:
        mates = np.flatnonzero(groups == groups[number]).tolist()
        of_group = [texts[i] for i in mates], [rewards[i] for i in mates]
        messages = context(problem, *of_group, mates.index(number))
      shown.append(None if messages is None else self.template.render(self.tokenizer, messages))
    return shown

  def score(
    self, prompts: Sequence[Sequence[int] | None], rollout: Rollout, ids: Any, needs: scorer.Needs
  ) -> tuple[Scores, Bool[np.ndarray, ' B']]:
    """What the judge thinks of every row, and which rows it judged."""
    judged = np.array([prompt is not None for prompt in prompts])
    known = [list(prompt) if prompt is not None else [0] for prompt in prompts]
    width = sampler.bucket(max(map(len, known)), least=8, most=self.config.max_positions)
    batch = left_padded(known, width=width, pad=0)
    if self.judge.cache is not None:
      return self._cached(batch, rollout, ids, needs), judged
    return self._scored(batch.tokens, batch.length, rollout.response, ids, needs), judged

  def _scored(self, tokens, length, response, ids, needs: scorer.Needs) -> Scores:
    params, parts = self.params(), []
    for begin in range(0, len(response), self.rows):
      piece = lambda x, begin=begin: None if x is None else x[begin : begin + self.rows]
      parts.append(
        scorer.score(
          params, piece(tokens), piece(length), piece(response), piece(ids),
          config=self.config, layout=self.layout, needs=needs,
        )
      )  # fmt: skip
    if len(parts) == 1:
      return parts[0]
    return jax.tree.map(lambda *pieces: jnp.concatenate(pieces), *parts)

  @functools.cached_property
  def identity(self) -> str:
    """Hash of the weights and of the tokenizer."""
    strings = hashlib.sha256(repr(self.tokenizer.strings()).encode()).hexdigest()[:16]
    return f'{digest(self.params())}-{strings}'

  def _cached(self, batch, rollout: Rollout, ids: Any, needs: scorer.Needs) -> Scores:
    """Rows that were judged before come from the folder, the others go into it."""
    files, size = [], rollout.response.shape[1]
    length = lengths(rollout)
    for row, n in enumerate(length):
      asked = [batch.tokens[row][-batch.length[row] :], rollout.response[row][:n]]
      asked += [] if ids is None else [np.asarray(ids[row])[:n]]
      key = hashlib.sha256(
        repr((self.identity, needs, [part.tolist() for part in asked])).encode()
      ).hexdigest()
      files.append(Path(str(self.judge.cache)) / key[:2] / f'{key}.npz')
    missing = [row for row, file in enumerate(files) if not file.is_file()]
    if missing:
      rows = np.resize(missing, len(files))  # one program, however many are missing
      asked = None if ids is None else np.asarray(ids)[rows]
      told = to_host(
        self._scored(batch.tokens[rows], batch.length[rows], rollout.response[rows], asked, needs)
      )
      for number, row in enumerate(missing):
        _store(
          files[row], jax.tree.map(lambda x, number=number, n=length[row]: x[number, :n], told)
        )
    return jax.tree.map(lambda *pieces: np.stack(pieces), *[_load(file, size) for file in files])


def _store(file: Path, scores: Scores) -> None:
  """One row, of its own length; npz knows no bfloat16, so hidden states are bytes of their type."""
  flat = {'logp': scores.logp, 'entropy': scores.entropy, 'at_ids': scores.at_ids}
  if scores.top_k is not None:
    flat |= {'top_ids': scores.top_k.ids, 'top_logp': scores.top_k.logp}
  for name, states in (('hidden', scores.hidden), ('layers', scores.layers)):
    if states is not None:
      states = np.ascontiguousarray(states)
      flat |= {name: states.view(np.uint8), f'{name}_type': np.array(states.dtype.name)}
  file.parent.mkdir(parents=True, exist_ok=True)
  part = file.with_suffix(f'.{os.getpid()}.part')
  with open(part, 'wb') as stream:
    np.savez(
      stream,
      allow_pickle=False,
      **{name: value for name, value in flat.items() if value is not None},
    )
  part.rename(file)  # whole or not at all


def _load(file: Path, size: int) -> Scores:
  """One row, with as many positions as the batch has."""
  with np.load(file) as stored:
    told: dict[str, np.ndarray] = dict(stored)
  for name in {'hidden', 'layers'} & told.keys():
    told[name] = told[name].view(jnp.dtype(str(told.pop(f'{name}_type'))))
  told = {
    name: np.pad(x, ((0, size - len(x)), *((0, 0),) * (x.ndim - 1))) for name, x in told.items()
  }
  top = TopK(ids=told['top_ids'], logp=told['top_logp']) if 'top_ids' in told else None
  return Scores(
    logp=told['logp'], entropy=told.get('entropy'), top_k=top, at_ids=told.get('at_ids'), hidden=told.get('hidden'),
    layers=told.get('layers'),
  )  # fmt: skip


@functools.partial(jax.jit, static_argnames=('config', 'layout'))
def _head(params: Params, *, config: ModelConfig, layout: Layout) -> Array:
  return transformer.bind(config, layout, params).head()


def merged(scores: Sequence[Scores], which: AnyArray) -> Scores:
  """Of several judges' views of all rows, each row's own. Hidden states belong to one head and cannot be mixed."""
  if any(each.hidden is not None for each in scores):
    raise ValueError(
      'teachers: several teachers cannot hand out hidden states, whose heads differ. Use a method or a support that '
      'asks for their top k.'
    )
  pick = lambda *parts: jnp.select(
    [(which == n).reshape(-1, *[1] * (parts[0].ndim - 1)) for n in range(len(parts))], parts
  )
  return jax.tree.map(pick, *scores)
