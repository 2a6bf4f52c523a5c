r"""Floor 1. How much a token or a response counts: detached numbers, taken from the *whole* batch before any gradient.

Each returns an array that multiplies into a coefficient. Batch statistics live here on purpose: inside a gradient
pass they would depend on how the batch is cut. Multi-hosted they are still global, because a batch is one array.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Bool, Float, Int, PRNGKeyArray

from opd_jax.losses import selectors
from opd_jax.losses.stable import relative
from opd_jax.types import AnyArray

Mask = Bool[AnyArray, 'B R']
Tokens = Float[AnyArray, 'B R']
Rows = Float[AnyArray, ' B']
TINY = 1e-8


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
  done = jnp.where(jnp.abs(total) > TINY, jnp.clip(selectors.before(size) / safe, 0.0, 1.0), 0.0)
  return 1.0 + gamma * (1.0 - done)


def linear(mask: Mask, *, gamma: float = 0.5) -> Tokens:
  """1 + γ (1 - t / n): what `prefix_discrepancy` is where the gap is the same everywhere."""
  return 1.0 + gamma * (
    1.0 - selectors.position_of(mask) / jnp.maximum(selectors.length_of(mask), 1.0)
  )


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
  mean = jnp.where(mask, weight, 0.0).sum(axis=1, keepdims=True) / jnp.maximum(
    selectors.length_of(mask), 1.0
  )
  return jnp.where(mask, weight / jnp.maximum(mean, TINY), 0.0)


def sign_gate(row_advantage: Rows, gap: Tokens) -> Bool[AnyArray, 'B R']:
  """True where the outcome and the teacher pull the same way.   SG-OPD, arXiv:2606.09304."""
  return row_advantage[:, None] * gap > 0


def robust(score: Tokens, mask: Mask, *, low: float = 0.05, high: float = 0.95) -> Tokens:
  """A score moved to [0, 1] by two quantiles of the batch: outliers do not set the scale, a shift does not matter."""
  selectors.check_fraction('weights.robust', low)
  selectors.check_fraction('weights.robust', high)
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
  return jnp.where(mask, logp, 0.0).sum(axis=1) / jnp.maximum(selectors.length_of(mask)[:, 0], 1.0)


def quantile_filter(score: Rows, mask: Mask, *, drop: float) -> Bool[AnyArray, ' B']:
  """True for responses above the `drop` quantile of the batch; empty ones are neither counted nor kept."""
  selectors.check_fraction('weights.quantile_filter', drop)
  there = mask.any(axis=1)
  order = jnp.argsort(jnp.where(there, score, jnp.inf), stable=True)
  rank = jnp.argsort(order, stable=True)
  dropped = jnp.asarray(selectors.parts_of(drop, score.shape[0], up=False), jnp.int32)[there.sum()]
  return there & (rank >= dropped)


def freshness(
  student_logp: Tokens, behaviour_logp: Tokens, mask: Mask, *, drift: float = 1.0
) -> Rows:
  r"""exp(-α √D) of every response, D the mean of ρ log ρ - ρ + 1 over its tokens, ρ = p / behaviour; 1 for fresh text.

  f-OPD, arXiv:2605.17862, eq. 11. Over the text's writer D is KL(p ‖ behaviour); it is never negative.
  """
  log = jnp.where(mask, student_logp - behaviour_logp, 0.0)
  log = jnp.minimum(log, 50.0)  # e^89 is infinite in float32
  kl = relative(log, jnp.zeros_like(log)).sum(axis=1) / jnp.maximum(
    selectors.length_of(mask)[:, 0], 1.0
  )
  return jnp.exp(-drift * jnp.sqrt(kl))


def dealt_at_random(key: PRNGKeyArray, weight: Rows, mask: Mask) -> Rows:
  """The same weights in an order drawn among the responses that have tokens: the control of a weight of responses."""
  there = mask.any(axis=1)
  drawn = jnp.where(there, jax.random.uniform(key, there.shape), jnp.inf)
  to, order = jnp.argsort(~there, stable=True), jnp.argsort(drawn, stable=True)
  return jnp.zeros_like(weight).at[to].set(weight[order])


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


def group_mean(reward: Rows, group: Int[AnyArray, ' B']) -> Rows:
  """Mean reward of the rows of a group that a verifier has seen; 0 where there is none."""
  known = ~unknown(reward)
  count = jnp.maximum(_per_group(jnp.ones_like(reward), group, known), 1.0)
  return _per_group(jnp.where(known, reward, 0.0), group, known) / count


def group_advantage(reward: Rows, group: Int[AnyArray, ' B']) -> Rows:
  """(reward - mean) / (deviation + ε) over the rows of a group: GRPO's number, exactly 0 where a group agrees."""
  known = ~unknown(reward)
  value = jnp.where(known, reward, 0.0)
  count = jnp.maximum(_per_group(jnp.ones_like(value), group, known), 1.0)
  mean = group_mean(reward, group)
  same = (group[:, None] == group[None, :]) & known[None, :]
  # Deviations are squared one by one: a mean of squares less the square of the mean is all rounding where they agree.
  spread = jnp.where(same, jnp.square(value[None, :] - mean[:, None]), 0.0).sum(axis=1) / count
  extreme = lambda sign: jnp.where(same, sign * value[None, :], -jnp.inf).max(axis=1)
  agrees = extreme(1.0) + extreme(-1.0) <= 0  # largest less smallest
  return jnp.where(known & ~agrees, (value - mean) / (jnp.sqrt(spread) + 1e-6), 0.0)
