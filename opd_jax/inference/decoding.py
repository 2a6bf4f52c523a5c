"""Floor 2. How the next token is chosen: rules on distributions, endings, and one exact draw.

A rule maps the scores of a position (logits of the writer, float32) to the scores of the distribution that
will be drawn from; rules are applied in order. Each is a static record. A number of a rule may move: then it is
an argument of the program, which is compiled once for the whole schedule. Whatever the rules did, the log-probability
that is recorded is that of the final distribution.
"""

import dataclasses
import math
import sys
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Key

from opd_jax.ramps import NO_DECISIONS, Moving, Number, at, extremes
from opd_jax.static import static

Scores = Float[Array, 'B V']
Numbers = Mapping[Moving, Any]  # where the numbers that move stand


class Rule:
  """(scores so far, logits of every model at this position: the writer's first, numbers that move) -> scores."""

  beside: ClassVar[bool] = False  # whether it reads a second model

  def __call__(self, scores: Scores, models: Sequence[Scores], numbers: Numbers) -> Scores:
    raise NotImplementedError


def value_of(number: Number, numbers: Numbers) -> Any:
  """A number of a rule: itself, or where it stands."""
  return numbers[number] if isinstance(number, Moving) else number


def all_between(number: Number, low: float, high: float) -> bool:
  """Whether a number lies between two others wherever it moves."""
  least, most = extremes(number)
  return low <= least and most <= high


def require(good: bool, who: str, what: str, got: object) -> None:
  """Refuses a setting without meaning."""
  if not good:
    raise ValueError(f'{who}: {what}, got {got}.')


@static(kw_only=False)
class Temperature(Rule):
  """p^(1/t), renormalised."""

  value: Number

  def __post_init__(self):
    good = all_between(self.value, math.ulp(0.0), sys.float_info.max)
    what = 'must be above 0 and finite (for the limit use Greedy())'
    require(good, 'Temperature', what, self.value)

  def __call__(self, scores, models, numbers):
    return scores / value_of(self.value, numbers)


@static(kw_only=False)
class Greedy(Rule):
  """The likeliest token with probability one; of equals the first."""

  def __call__(self, scores, models, numbers):
    best = jnp.argmax(scores, axis=-1, keepdims=True)
    # Certain of a number; of NaN, or of nothing left to choose from, it must not look certain.
    certain = jnp.where(jnp.isfinite(jnp.max(scores, axis=-1, keepdims=True)), 0.0, jnp.nan)
    return jnp.where(jnp.arange(scores.shape[-1]) == best, certain, -jnp.inf)


@static(kw_only=False)
class TopK(Rule):
  """The k likeliest tokens; of equals the first."""

  k: int

  def __post_init__(self):
    require(self.k >= 1, 'TopK', 'k must be at least 1', self.k)

  def __call__(self, scores, models, numbers):
    kept = jax.lax.top_k(scores, min(self.k, scores.shape[-1]))[1]
    return jnp.where(_members(kept, jnp.ones_like(kept, bool), scores), scores, -jnp.inf)


@static(kw_only=False)
class TopP(Rule):
  """The smallest set of likeliest tokens with mass at least p; never empty."""

  p: float

  def __post_init__(self):
    require(0 < self.p <= 1, 'TopP', 'p must lie in (0, 1]', self.p)

  def __call__(self, scores, models, numbers):
    if self.p == 1:  # a cumulative sum in float32 would lose the last tokens
      return scores
    order = jnp.argsort(-scores, axis=-1)
    probs = jax.nn.softmax(jnp.take_along_axis(scores, order, axis=-1), axis=-1)
    before = jnp.cumsum(probs, axis=-1) - probs  # mass of all likelier tokens
    return jnp.where(_members(order, before < self.p, scores), scores, -jnp.inf)


@static(kw_only=False)
class MinP(Rule):
  """Tokens at least `fraction` times as likely as the likeliest."""

  fraction: float

  def __post_init__(self):
    require(0 < self.fraction <= 1, 'MinP', 'fraction must lie in (0, 1]', self.fraction)

  def __call__(self, scores, models, numbers):
    return jnp.where(
      scores >= scores.max(axis=-1, keepdims=True) + math.log(self.fraction), scores, -jnp.inf
    )


@static(kw_only=False)
class Forbid(Rule):
  """Tokens that are never written: padded rows of a table, for one."""

  tokens: tuple[int, ...]

  def __call__(self, scores, models, numbers):
    return scores.at[:, jnp.asarray(self.tokens, jnp.int32)].set(-jnp.inf)


def _members(
  ids: Int[Array, 'B C'], keep: Bool[Array, 'B C'], scores: Scores
) -> Bool[Array, 'B V']:
  """True at the ids that are kept."""
  rows = jnp.arange(ids.shape[0])[:, None]
  return jnp.zeros(scores.shape, bool).at[rows, ids].set(keep)


@static(kw_only=False)
class RepetitionStop:
  """Ends a response whose last `period · times` tokens are one block of `period` tokens, `times` times over.

  `periods` lists the block lengths that are looked for.
  """

  periods: tuple[int, ...] = (1, 2, 4, 8)
  times: int = 8

  def __post_init__(self):
    good = self.times >= 2 and len(self.periods) > 0 and min(self.periods) >= 1
    require(
      good,
      'RepetitionStop',
      'wants periods of at least 1 and at least 2 times',
      (self.periods, self.times),
    )

  @property
  def window(self) -> int:
    return max(self.periods) * self.times

  def __call__(self, recent: Int[Array, 'B W']) -> Bool[Array, ' B']:
    """`recent`: the last tokens, oldest first, -1 where nothing was written yet."""
    looping = jnp.zeros(recent.shape[0], bool)
    for period in self.periods:
      tail = recent[:, -period * self.times :].reshape(-1, self.times, period)
      looping |= (tail == tail[:, :1]).all(axis=(1, 2)) & (tail >= 0).all(axis=(1, 2))
    return looping


@static
class Decoding:
  """How responses are written and when they end.

  Args:
    rules: applied in order; none draws from the model itself.
    stop_tokens: each ends a response and is its last token.
    repetition: ends responses that loop; None lets them run to their budget.
  """

  rules: tuple[Rule, ...] = ()
  stop_tokens: tuple[int, ...] = ()
  repetition: RepetitionStop | None = None

  def distribution(
    self, models: Sequence[Scores], numbers: Numbers = MappingProxyType({})
  ) -> Scores:
    """Scores of the distribution that is drawn from, from the logits of every model and the numbers that move."""
    scores = models[0]
    for rule in self.rules:
      scores = rule(scores, models, numbers)
    return scores

  @property
  def window(self) -> int:
    """Tokens that the stop of repetitions looks back at; 0 without one."""
    return self.repetition.window if self.repetition else 0

  @property
  def moving(self) -> tuple[Moving, ...]:
    """The numbers of the rules that move."""
    records: tuple[Any, ...] = self.rules
    fields = [getattr(rule, field.name) for rule in records for field in dataclasses.fields(rule)]
    return tuple(dict.fromkeys(field for field in fields if isinstance(field, Moving)))

  def numbers_at(
    self, step: int, decisions: Mapping[str, float] = NO_DECISIONS
  ) -> tuple[np.float32, ...]:
    """Their values at a step: traced arguments of the programs."""
    return tuple(np.float32(at(number, step, decisions)) for number in self.moving)

  def is_stop(self, tokens: Int[Array, ' B']) -> Bool[Array, ' B']:
    return jnp.isin(tokens, jnp.asarray(self.stop_tokens, jnp.int32))


def usual_rules(
  *, temperature: float, top_k: int | None, top_p: float | None, min_p: float | None
) -> tuple[Rule, ...]:
  """Returns decoding rules in the usual order: temperature, then truncation. Temperature 0 is greedy."""
  first = Greedy() if temperature == 0 else Temperature(temperature)
  chosen: list[Rule] = [] if temperature == 1.0 else [first]
  chosen += [TopK(top_k)] if top_k is not None else []
  chosen += [TopP(top_p)] if top_p is not None else []
  return (*chosen, *([MinP(min_p)] if min_p is not None else []))


def draw(scores: Scores, keys: Key[Array, ' B']) -> Int[Array, ' B']:
  """One token per row, from that row's key alone.

  First a block of about √V tokens by the mass of blocks, then a token within it, each with a uniform of its
  own: two draws of 23 bits reach tokens that one could not, and V random numbers per row are never made.
  """
  rows, size = scores.shape
  width = 1 << math.ceil(math.log2(max(size, 2)) / 2)
  probs = jnp.exp(scores - scores.max(axis=-1, keepdims=True))
  blocks = jnp.pad(probs, ((0, 0), (0, -size % width))).reshape(rows, -1, width)
  uniform = jax.vmap(lambda key: jax.random.uniform(key, (2,)))(keys)
  block = _invert(blocks.sum(axis=-1), uniform[:, 0])
  within = jnp.take_along_axis(blocks, block[:, None, None], axis=1)[:, 0]
  return block * width + _invert(within, uniform[:, 1])


def _invert(mass: Float[Array, 'B C'], uniform: Float[Array, ' B']) -> Int[Array, ' B']:
  """The first entry with mass whose cumulative mass exceeds uniform · total.

  A parallel cumulative sum in float32 is not monotone: an entry without mass can get an interval of its own, so
  mass is asked for by name; rounding can also leave nothing above the target, and then it is the last with mass.
  """
  cumulative, held = jnp.cumsum(mass, axis=-1), mass > 0
  hit = (cumulative > uniform[:, None] * cumulative[:, -1:]) & held
  last = mass.shape[-1] - 1 - jnp.argmax(held[:, ::-1], axis=-1)
  return jnp.where(hit.any(axis=-1), jnp.argmax(hit, axis=-1), last).astype(jnp.int32)
