"""Floor 3. What an experiment says about a judge: records that gin fills; nothing is loaded here."""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from opd_jax import ramps
from opd_jax.data.templates import Template
from opd_jax.judges.gates import Gate
from opd_jax.judges.scenes import Context
from opd_jax.ramps import Number
from opd_jax.sharding import Layout
from opd_jax.static import static


@static
class Refresh:
  """φ ← φ + rate · (θ - φ), every so many steps, after the update.

  Args:
    rate: 0 never moves, 1 copies the student.
    every: steps between two refreshes.
    gate: looks at the metrics and says when; then `every` is 1.
  """

  rate: Number
  every: int = 1
  gate: Gate | None = None

  def __post_init__(self):
    lowest, highest = ramps.extremes(self.rate)
    if not 0 <= lowest <= highest <= 1 or self.every < 1:
      raise ValueError(
        f'Refresh: rate must lie in [0, 1] and every must be at least 1, got {self}.'
      )
    if self.gate is not None and (self.every != 1 or highest == 0):
      raise ValueError(
        f'Refresh: its gate says when it moves, so every must be 1 and rate above 0, got {self}.'
      )

  @property
  def is_live(self) -> bool:
    """Whether the judge is the student itself, so that it needs no snapshot."""
    return self.rate == 1 and self.every == 1 and self.gate is None

  def is_due(self, step: int) -> bool:
    """Whether the judge moves after this step of its stage, whatever the metrics say."""
    return self.gate is None and self.rate != 0 and step % self.every == 0


NEVER = Refresh(rate=0.0)


def never() -> Refresh:
  """The student as it was when the stage began."""
  return NEVER


def ema(*, rate: Number) -> Refresh:
  """An exponential moving average; its mean lag is (1 - rate) / rate steps."""
  return Refresh(rate=rate)


def every(steps: int) -> Refresh:
  """A copy of the student, renewed every so many steps."""
  return Refresh(rate=1.0, every=steps)


def gated(*, by: Gate, rate: Number = 1.0) -> Refresh:
  """A copy of the student, renewed when the metrics of the run say so.

  Args:
    by: says when: `gates.RewardRose` (CGTR) or `gates.Improved`.
    rate: of the blend; 1 copies the student.
  """
  return Refresh(rate=rate, gate=by)


def live() -> Refresh:
  """The student as it is."""
  return Refresh(rate=1.0)


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
    too_long: what happens to a row whose prompt and response do not fit the judge's position table: 'refuse' stops
      the run and names it, 'unknown' leaves it without a judgement. In evaluations such a row is always unknown: nobody
      trains on it, and metrics show how many there are.
  """

  weights: str | None = None
  refresh: Refresh = NEVER
  layout: Layout | None = None
  template: Template | None = None
  context: Context | None = None
  cache: str | None = None
  dtype: str | None = None
  too_long: Literal['refuse', 'unknown'] = 'refuse'

  def __post_init__(self):
    if self.cache is not None and self.weights is None:
      raise ValueError(
        'Judge: a cache needs a judge that never changes; this one is the student itself.'
      )
    if self.layout is not None and self.weights is None:
      raise ValueError(
        "Judge: a judge that is the student has the student's layout; only one with weights of its own takes a layout."
      )
    if self.dtype not in (None, 'float32', 'bfloat16', 'float16'):
      raise ValueError(
        f"Judge: dtype is 'float32', 'bfloat16', 'float16' or None, got {self.dtype!r}."
      )
    if self.too_long not in ('refuse', 'unknown'):
      raise ValueError(f"Judge: too_long is 'refuse' or 'unknown', got {self.too_long!r}.")

  def shares_model(self, other: 'Judge') -> bool:
    """Whether another judge has the same weights at every step."""
    of = lambda judge: (judge.weights, judge.refresh, judge.layout, judge.dtype)
    return of(self) == of(other)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Routed:
  """Several judges: each problem goes to the one that its route names."""

  table: tuple[tuple[str, Judge], ...]

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


@dataclasses.dataclass(frozen=True, kw_only=True)
class Combined:
  """One judge made of several: its logits are the signed sum of theirs, Σ coefficient · logits."""

  parts: tuple[tuple[Number, Judge | Averaged], ...]

  def __post_init__(self):
    object.__setattr__(self, 'parts', tuple((part[0], part[1]) for part in self.parts))
    if not self.parts:
      raise ValueError('Combined: there are no parts; name at least one (coefficient, judge).')
    for coefficient, _ in self.parts:
      if isinstance(coefficient, ramps.Watching):
        raise ValueError(
          f'Combined: {coefficient.name} looks at metrics, and a coefficient follows the step only. Give it a Ramp or '
          'a Piecewise.'
        )
      if not all(map(math.isfinite, ramps.extremes(coefficient))):
        raise ValueError(f'Combined: coefficients must be finite, got {coefficient}.')

  @property
  def members(self) -> list[Judge]:
    """Every judge that reads rows."""
    return [
      member
      for _, part in self.parts
      for member in (part.members if isinstance(part, Averaged) else (part,))
    ]

  @property
  def models(self) -> list[Judge]:
    """The first judge of each model: judges that differ in what they read share their weights."""
    found: list[Judge] = []
    for member in self.members:
      if not any(member.shares_model(other) for other in found):
        found.append(member)
    return found


AnyJudge = Judge | Routed | Combined


def frozen(weights: str, **options: Any) -> Judge:
  """A model that never changes: folder, hub id or preset."""
  return Judge(weights=weights, **options)


def itself(*, refresh: Refresh = NEVER, **options: Any) -> Judge:
  """The student: as it was at the beginning of the stage, or as `refresh` says."""
  return Judge(refresh=refresh, **options)


def routed(table: Mapping[str, Judge] | None = None, **more: Judge) -> Routed:
  """One judge for each route of the data."""
  return Routed(table=tuple(sorted({**(table or {}), **more}.items())))


def averaged(*, members: Sequence[Judge]) -> Averaged:
  """A part of a combined judge: the mean of several, in each row over those whose context shows something."""
  return Averaged(members=tuple(members))


def combined(*, parts: Sequence[tuple[Number, Judge | Averaged]]) -> Combined:
  """The geometric combination p ∝ Π q_i^c_i of several judges, e.g. ((1.25, teacher), (-0.25, base)).

  Args:
    parts: a coefficient each, which may move with the step, and a judge or the mean of several (`judges.averaged`). A
      row of which a part has no opinion is not judged.
  """
  return Combined(parts=tuple(parts))


def readers(judge: AnyJudge) -> list[tuple[str | None, Judge]]:
  """Every single judge that reads rows, with the route of its rows; None: it may read any."""
  if isinstance(judge, Routed):
    return [*judge.table]
  members = judge.members if isinstance(judge, Combined) else [judge]
  return [(None, member) for member in members]


def named_parts(name: str, judge: AnyJudge) -> list[tuple[str, Judge]]:
  """The single judges that work under one name, each with a name of its own; of a combined one, its models."""
  if isinstance(judge, Routed):
    return [(f'{name}/{route}', part) for route, part in judge.table]
  if isinstance(judge, Combined):
    return [(f'{name}/{number}', part) for number, part in enumerate(judge.models)]
  return [(name, judge)]
