r"""Floor 1. How much a token or a response counts: detached numbers, taken from the *whole* batch before any gradient.

Each returns an array that multiplies into a coefficient. Batch statistics live here on purpose: inside a gradient
pass they would depend on how the batch is cut. Multi-hosted they are still global, because a batch is one array.
"""

from fractions import Fraction

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray

from opd_jax.types import AnyArray

Mask = Bool[AnyArray, 'B R']
Tokens = Float[AnyArray, 'B R']
Rows = Float[AnyArray, ' B']
TINY = 1e-8


def _fraction(name: str, fraction: float) -> None:
  if not 0.0 <= fraction <= 1.0:
    raise ValueError(f'{name}: a fraction lies between 0 and 1, got {fraction}.')


def _before(x: Tokens) -> Tokens:
  """Σ of what stands strictly before a position."""
  return jnp.cumsum(x, axis=1) - x


def _position(mask: Mask) -> Tokens:
  """0, 1, 2 … along the tokens that count."""
  return _before(mask.astype(float))


def _length(mask: Mask) -> Float[Array, 'B 1']:
  return mask.sum(axis=1, keepdims=True).astype(float)


# --- by position ----------------------------------------------------------------------------------


def prefix_discrepancy(
  gap: Tokens, mask: Mask, *, gamma: float = 0.5, signed: bool = False
) -> Tokens:
  r"""1 + γ (1 - F_t), F_t = Σ_{k<t} |d_k| / Σ_k |d_k|: early disagreement counts more.   IW-OPD, arXiv:2606.22600.

  Args:
    signed: accumulate d instead of |d|; F is then clipped to [0, 1].
  """
  size = jnp.where(mask, gap if signed else jnp.abs(gap), 0.0)
  total = size.sum(axis=1, keepdims=True)
  safe = jnp.where(jnp.abs(total) > TINY, total, 1.0)
  done = jnp.where(jnp.abs(total) > TINY, jnp.clip(_before(size) / safe, 0.0, 1.0), 0.0)
  return 1.0 + gamma * (1.0 - done)


def linear(mask: Mask, *, gamma: float = 0.5) -> Tokens:
  """1 + γ (1 - t / n): what `prefix_discrepancy` is where the gap is the same everywhere."""
  return 1.0 + gamma * (1.0 - _position(mask) / jnp.maximum(_length(mask), 1.0))


def _parts(fraction: float, largest: int, *, up: bool) -> np.ndarray:
  """fraction · n for n = 0 … largest as whole numbers, rounded up or down: exactly, whatever the type of a mask's sum.

  The fraction is the simplest one that the float stands for: 0.3 is 3 / 10. No product of floats would do: in float32
  0.3 · 50 lies above 15, and 0.999 · 9,999 = 9,989.001 is within rounding of 9,989.
  """
  exact = Fraction(float(fraction)).limit_denominator(10**6)
  products = exact.numerator * np.arange(largest + 1, dtype=np.int64)
  return -(-products // exact.denominator) if up else products // exact.denominator


def part_of(mask: Mask, fraction: float) -> Float[Array, 'B 1']:
  """ceil(fraction · n) of every response, n its tokens that count."""
  parts = jnp.asarray(_parts(fraction, mask.shape[1], up=True), jnp.int32)
  return parts[mask.sum(axis=1, keepdims=True)].astype(float)


def first(mask: Mask, *, fraction: float) -> Tokens:
  """1 on the first `fraction` of a response's tokens (rounded up), 0 behind."""
  _fraction('weights.first', fraction)
  return (_position(mask) < part_of(mask, fraction)).astype(float)


def last(mask: Mask, *, fraction: float) -> Tokens:
  """1 on the last `fraction` of a response's tokens (rounded up), 0 before."""
  _fraction('weights.last', fraction)
  return (_position(mask) >= _length(mask) - part_of(mask, fraction)).astype(float)


# --- by confidence and disagreement ---------------------------------------------------------------


def confidence(
  teacher_entropy: Tokens,
  student_entropy: Tokens,
  mask: Mask,
  *,
  teacher: float = 1.0,
  student: float = 1.0,
) -> Tokens:
  r"""(1 + α (1 - H_T / max H_T)) (1 + β H_S / max H_S), divided by its mean over the response; max over the batch.

  FiRe-OPD, arXiv:2606.02684, eq. 8: large where the teacher is sure and the student is not.
  """
  part = lambda entropy: entropy / jnp.maximum(jnp.where(mask, entropy, 0.0).max(), TINY)
  weight = (1.0 + teacher * (1.0 - part(teacher_entropy))) * (1.0 + student * part(student_entropy))
  mean = jnp.where(mask, weight, 0.0).sum(axis=1, keepdims=True) / jnp.maximum(_length(mask), 1.0)
  return jnp.where(mask, weight / jnp.maximum(mean, TINY), 0.0)


def sign_gate(row_advantage: Rows, gap: Tokens) -> Bool[AnyArray, 'B R']:
  """True where the outcome and the teacher pull the same way.   SG-OPD, arXiv:2606.09304."""
  return row_advantage[:, None] * gap > 0


def top_fraction(score: Tokens, mask: Mask, *, fraction: float) -> Tokens:
  """1 on the ceil(fraction · n) tokens of a response that score highest, at least one; ties go to the earlier token."""
  _fraction('weights.top_fraction', fraction)
  wanted = jnp.maximum(part_of(mask, fraction), 1.0)
  order = jnp.argsort(jnp.where(mask, -score, jnp.inf), axis=1, stable=True)
  rank = jnp.argsort(order, axis=1, stable=True)
  return (mask & (rank < wanted)).astype(float)


def random_mask(key: PRNGKeyArray, mask: Mask, *, fraction: float) -> Tokens:
  """The same budget as `top_fraction`, spent at random: the control that every selector needs."""
  return top_fraction(jax.random.uniform(key, mask.shape), mask, fraction=fraction)


def robust(score: Tokens, mask: Mask, *, low: float = 0.05, high: float = 0.95) -> Tokens:
  """A score moved to [0, 1] by two quantiles of the batch: outliers do not set the scale, a shift does not matter."""
  _fraction('weights.robust', low)
  _fraction('weights.robust', high)
  known = jnp.where(mask, score, jnp.nan)
  lowest, highest = jnp.nanquantile(known, low), jnp.nanquantile(known, high)
  scaled = jnp.clip((score - lowest) / jnp.maximum(highest - lowest, TINY), 0.0, 1.0)
  return jnp.where(mask & jnp.isfinite(scaled), scaled, 0.0)


def whitened(score: Tokens, mask: Mask, *, bound: float | None = None) -> Tokens:
  """Mean 0 and deviation 1 over the tokens of the batch, after the clamp.   GNDPO, arXiv:2606.09091.

  It moves the sign of the many tokens near zero: PowerOPD and OPD+ found it harmful.
  """
  score = score if bound is None else jnp.clip(score, -bound, bound)
  count = jnp.maximum(mask.sum(), 1)
  mean = jnp.where(mask, score, 0.0).sum() / count
  variance = jnp.where(mask, jnp.square(score - mean), 0.0).sum() / count
  return jnp.where(mask, (score - mean) / jnp.sqrt(jnp.maximum(variance, TINY)), 0.0)


def mean_one(weight: Tokens, mask: Mask) -> Tokens:
  """A weight divided by its mean over the batch: what a larger step alone would have done is gone."""
  count = jnp.maximum(mask.sum(), 1)
  return weight / jnp.maximum(jnp.where(mask, weight, 0.0).sum() / count, TINY)


def truncated_importance(
  student_logp: Tokens, behaviour_logp: Tokens, *, max: float = 5.0
) -> Tokens:
  """min( p / behaviour, max ): for rollouts that another program, or older weights, wrote. No gradient is zeroed."""
  return jnp.exp(jnp.minimum(student_logp - behaviour_logp, jnp.log(max)))


# --- by response ----------------------------------------------------------------------------------


def mean_logp(logp: Tokens, mask: Mask) -> Rows:
  """Mean log-probability of a response: minus the log of its perplexity."""
  return jnp.where(mask, logp, 0.0).sum(axis=1) / jnp.maximum(_length(mask)[:, 0], 1.0)


def quantile_filter(score: Rows, mask: Mask, *, drop: float) -> Bool[AnyArray, ' B']:
  """True for responses above the `drop` quantile of the batch; empty ones are neither counted nor kept."""
  _fraction('weights.quantile_filter', drop)
  there = mask.any(axis=1)
  order = jnp.argsort(jnp.where(there, score, jnp.inf), stable=True)
  rank = jnp.argsort(order, stable=True)
  dropped = jnp.asarray(_parts(drop, score.shape[0], up=False), jnp.int32)[there.sum()]
  return there & (rank >= dropped)


def _per_group(values: Rows, group: Int[AnyArray, ' B'], among: Bool[AnyArray, ' B']) -> Rows:
  """Σ of `values` over the rows of the same group that are `among`, for every row."""
  same = group[:, None] == group[None, :]
  return jnp.where(same & among[None, :], values[None, :], 0.0).sum(axis=1)


def right(reward: Rows) -> Bool[AnyArray, ' B']:
  """Responses that a verifier rewarded."""
  return reward > 0


def wrong(reward: Rows) -> Bool[AnyArray, ' B']:
  """Responses that a verifier looked at and did not reward."""
  return reward <= 0


def unknown(reward: Rows) -> Bool[AnyArray, ' B']:
  """Responses that no verifier has looked at: neither right nor wrong."""
  return jnp.isnan(reward)


def group_softmax(
  score: Rows,
  group: Int[AnyArray, ' B'],
  among: Bool[AnyArray, ' B'],
  mask: Mask,
  *,
  temperature: float = 1.0,
) -> Rows:
  """Softmax of a score over the rows of a group that are `among`, times their number: mean 1, 0 elsewhere.

  SCOPE, arXiv:2604.10688: score = minus the student's mean log-probability among correct responses, the teacher's
  mean log-probability among wrong ones. A row without tokens has no share.
  """
  among = among & mask.any(axis=1)
  same = (group[:, None] == group[None, :]) & among[None, :]
  highest = jnp.where(same, score[None, :], -jnp.inf).max(axis=1)
  centred = score - jnp.where(jnp.isfinite(highest), highest, 0.0)
  mass = jnp.where(among, jnp.exp(centred / temperature), 0.0)
  total = _per_group(mass, group, among)
  count = _per_group(jnp.ones_like(mass), group, among)
  return jnp.where(among, count * mass / jnp.maximum(total, TINY), 0.0)


def group_advantage(reward: Rows, group: Int[AnyArray, ' B']) -> Rows:
  """(reward - mean) / (deviation + ε) over the rows of a group: GRPO's number, exactly 0 where a group agrees."""
  known = ~unknown(reward)
  value = jnp.where(known, reward, 0.0)
  count = jnp.maximum(_per_group(jnp.ones_like(value), group, known), 1.0)
  mean = _per_group(value, group, known) / count
  same = (group[:, None] == group[None, :]) & known[None, :]
  # Deviations are squared one by one: a mean of squares less the square of the mean is all rounding where they agree.
  spread = jnp.where(same, jnp.square(value[None, :] - mean[:, None]), 0.0).sum(axis=1) / count
  extreme = lambda sign: jnp.where(same, sign * value[None, :], -jnp.inf).max(axis=1)
  agrees = extreme(1.0) + extreme(-1.0) <= 0  # largest less smallest
  return jnp.where(known & ~agrees, (value - mean) / (jnp.sqrt(spread) + 1e-6), 0.0)
