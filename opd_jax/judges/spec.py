"""Floor 3. What an experiment says about a judge: records that gin fills; nothing is loaded here."""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from opd_jax import kinds, ramps
from opd_jax.data.templates import Template
from opd_jax.data.tokenizers import Tokenizer
from opd_jax.judges.refresh import NEVER, Refresh
from opd_jax.judges.scenes import Context
from opd_jax.judges.served_spec import Served
from opd_jax.ramps import Number
from opd_jax.sharding import Layout
from opd_jax.storage.hub_tokenizer import Published


@dataclasses.dataclass(frozen=True, kw_only=True)
class Judge:
  """A model that says how likely it finds every token of a response.

  Args:
    weights: folder, hub id or preset; None: the student's own, moved as `refresh` says.
    refresh: how a judge that is the student follows it.
    layout: devices and sharding of its weights; None: the student's.
    template: renders its prompts; None: the student's template, in training and in each evaluation.
    context: builds its prompt in place of the plain problem.
    cache: folder that stores its scores, by judge, tokenizer and tokens; only for judges that never change.
    dtype: of its parameters and activations; None: as it is stored.
    int8: its matrices lie in memory as int8, half of bfloat16; the preflight says how far that moves it.
    tokenizer: its own, where it is not the student's (see `foreign`): 'beside' reads the one beside its weights.
    open_ends: of a judge with its own tokenizer: a token of it that has ended may still go on, as far as the student
      has said; False closes tokens where both end, as papers do, and chunks then sum to the judge's own.
    longest_chunk: of a judge with its own tokenizer: a stretch that takes more tokens on either side is not judged.
    too_long: what happens to a row whose prompt and response do not fit the judge's position table: 'refuse' stops
      the run and names it, 'unknown' leaves it without a judgement, as evaluations always do; metrics count them.
  """

  weights: str | None = None
  refresh: Refresh = NEVER
  layout: Layout | None = None
  template: Template | None = None
  context: Context | None = None
  cache: str | None = None
  dtype: str | None = None
  int8: bool = False
  tokenizer: Tokenizer | Published | Literal['beside'] | None = None
  longest_chunk: int | None = None
  open_ends: bool = True
  too_long: Literal['refuse', 'unknown'] = 'refuse'

  def __post_init__(self):
    if self.cache is not None and self.weights is None:
      raise ValueError(
        'Judge: a cache needs a judge that never changes; this one is the student itself.'
      )
    cache = self.cache
    if isinstance(cache, str) and ('://' in cache or Path(cache).is_file()):
      raise ValueError(f'Judge: cache must be a folder of this machine, got {cache!r}.')
    if not isinstance(self.int8, bool):
      raise ValueError(f'Judge: int8 is True or False, got {self.int8!r}.')
    if self.layout is not None and self.weights is None:
      raise ValueError(
        "Judge: a judge that is the student has the student's layout; only one with weights of its own takes a layout."
      )
    if self.dtype not in (None, 'float32', 'bfloat16', 'float16'):
      raise ValueError(
        f"Judge: dtype is 'float32', 'bfloat16', 'float16' or None, got {self.dtype!r}."
      )
    if self.int8 and self.weights is None:
      raise ValueError(
        'Judge: a judge that is the student lies in memory as it does; only one with weights of its own is int8.'
      )
    self._check_tokenizer()
    if self.too_long not in ('refuse', 'unknown'):
      raise ValueError(f"Judge: too_long is 'refuse' or 'unknown', got {self.too_long!r}.")

  def _check_tokenizer(self) -> None:
    if self.tokenizer is not None and self.weights is None:
      raise ValueError(
        'Judge: a judge that is the student has its tokenizer; only one with weights of its own takes another.'
      )
    longest = self.longest_chunk
    if longest is not None and (
      self.tokenizer is None
      or isinstance(longest, bool)
      or not isinstance(longest, int)
      or longest < 1
    ):
      raise ValueError(
        f'Judge: longest_chunk is at least 1 and of a foreign judge (judges.foreign), got {longest!r}.'
      )

  @property
  def is_foreign(self) -> bool:
    """Whether it has a tokenizer of its own."""
    return self.tokenizer is not None

  @property
  def source(self) -> str:
    """What it is called in lists of judges."""
    return self.weights or 'the student itself'

  def shares_model(self, other: 'Judge') -> bool:
    """Whether another judge has the same weights at every step."""
    of = lambda judge: (judge.weights, judge.refresh, judge.layout, judge.dtype, judge.int8)
    return of(self) == of(other)


Single = Judge | Served


@dataclasses.dataclass(frozen=True, kw_only=True)
class Routed:
  """Several judges: each problem goes to the one that its route names."""

  table: tuple[tuple[str, Single], ...]

  def __post_init__(self):
    if not self.table:
      raise ValueError('Routed: the table is empty; name a judge for each route of the data.')


@dataclasses.dataclass(frozen=True, kw_only=True)
class Averaged:
  """The mean of the logits of several judges, in each row over those that have an opinion of it."""

  members: tuple[Judge, ...]

  def __post_init__(self):
    if not self.members:
      raise ValueError('Averaged: there are no members; name at least one judge.')


def members_of(part: Single | Averaged) -> tuple[Judge, ...]:
  """The judges of a part of a combined one."""
  if isinstance(part, Averaged):
    return part.members
  return (part,) if isinstance(part, Judge) else ()


@dataclasses.dataclass(frozen=True, kw_only=True)
class Combined:
  """One judge made of several: its logits are the signed sum of theirs, Σ coefficient · logits."""

  parts: tuple[tuple[Number, Single | Averaged], ...]

  def __post_init__(self):
    object.__setattr__(self, 'parts', tuple((part[0], part[1]) for part in self.parts))
    if not self.parts:
      raise ValueError('Combined: there are no parts; name at least one (coefficient, judge).')
    for coefficient, part in self.parts:
      if any(each.is_foreign for each in members_of(part)):
        raise ValueError(
          'Combined: logits are added token by token, so a foreign judge is none of several. Bind it alone.'
        )
      if isinstance(part, Served):
        raise ValueError(
          f'Combined: its parts are summed as logits, and {part.source} sends log-probabilities of some tokens '
          'only. Bind judges with weights, or one served judge alone.'
        )
      if isinstance(coefficient, ramps.Watching):
        raise ValueError(
          f'Combined: {coefficient.name} looks at metrics, a coefficient follows the step. Give it a Ramp or Piecewise.'
        )
      if not all(map(math.isfinite, ramps.extremes(coefficient))):
        raise ValueError(f'Combined: coefficients must be finite, got {coefficient}.')

  @property
  def members(self) -> list[Judge]:
    """Every judge that reads rows."""
    return [member for _, part in self.parts for member in members_of(part)]

  @property
  def models(self) -> list[Judge]:
    """The first judge of each model: judges that differ in what they read share their weights."""
    found: list[Judge] = []
    for member in self.members:
      if not any(member.shares_model(other) for other in found):
        found.append(member)
    return found


AnyJudge = Single | Routed | Combined


def frozen(weights: str, **options: Any) -> Judge:
  """A model that never changes: folder, hub id or preset."""
  return _judge(weights=weights, **options)


def _judge(**options: Any) -> Judge:
  """A judge of these options; one that is not known is told which there are."""
  kinds.check_options(Judge, options)
  return Judge(**options)


def foreign(
  weights: str, *, tokenizer: Tokenizer | Published | Literal['beside'] = 'beside', **options: Any
) -> Judge:
  """A model that never changes and has a tokenizer of its own: it reads what the student writes in its own tokens.

  Args:
    weights: folder or hub id.
    tokenizer: 'beside': the one that lies beside the weights.
    options: of any judge.
  """
  return _judge(weights=weights, tokenizer=tokenizer, **options)


def itself(*, refresh: Refresh = NEVER, **options: Any) -> Judge:
  """The student: as it was at the beginning of the stage, or as `refresh` says."""
  return _judge(refresh=refresh, **options)


def routed(table: Mapping[str, Single] | None = None, **more: Single) -> Routed:
  """One judge for each route of the data."""
  return Routed(table=tuple(sorted({**(table or {}), **more}.items())))


def averaged(*, members: Sequence[Judge]) -> Averaged:
  """A part of a combined judge: the mean of several, in each row over those whose context shows something."""
  return Averaged(members=tuple(members))


def combined(*, parts: Sequence[tuple[Number, Single | Averaged]]) -> Combined:
  """The geometric combination p ∝ Π q_i^c_i of several judges, e.g. ((1.25, teacher), (-0.25, base)).

  Args:
    parts: a coefficient each, and a judge or the mean of several; rows of which a part has no opinion are not judged.
  """
  return Combined(parts=tuple(parts))


def readers(judge: AnyJudge) -> list[tuple[str | None, Single]]:
  """Every single judge that reads rows, with the route of its rows; None: it may read any."""
  if isinstance(judge, Routed):
    return [*judge.table]
  return [(None, one) for one in (judge.members if isinstance(judge, Combined) else [judge])]


def is_foreign(judge: AnyJudge) -> bool:
  """Whether it, or one of several, has a tokenizer of its own."""
  return any(part.is_foreign for _, part in readers(judge))


def named_parts(name: str, judge: AnyJudge) -> list[tuple[str, Single]]:
  """The single judges that work under one name, each with a name of its own; of a combined one, its models."""
  if isinstance(judge, Routed):
    return [(f'{name}/{route}', part) for route, part in judge.table]
  if isinstance(judge, Combined):
    return [(f'{name}/{number}', part) for number, part in enumerate(judge.models)]
  return [(name, judge)]
