"""Floor 2. Decoding rules that read a second model beside the writer: p is of the writer, q of the other."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp

from opd_jax.inference.decoding import Rule, Scores, TopK, all_between, require, value_of
from opd_jax.losses.stable import relative
from opd_jax.ramps import Number, extremes
from opd_jax.static import static

HALVINGS = 24  # of an interval of length 1: as fine as float32 near 1


class Guided(Rule):
  """A rule that reads the second model."""

  beside = True


def _both(who: str, scores: Scores, models: Sequence[Scores]) -> tuple[Scores, Scores]:
  """Normalised scores of the writer and of the second model."""
  if len(models) < 2:
    raise ValueError(
      f'{who}: it mixes two models and one is sampling. Let the student write beside the teacher: '
      "RolloutMix(beside='teacher')."
    )
  return jax.nn.log_softmax(scores), jax.nn.log_softmax(models[1])


def _geometric(own: Scores, other: Scores, weight) -> Scores:
  """Scores of p^(1-weight) q^weight, not normalised; what earlier rules took away stays away."""
  # At the ends one side is absent, and 0 · (-inf) must not turn up.
  part = lambda weight, log: jnp.where(weight == 0, 0.0, weight * log)
  return jnp.where(own == -jnp.inf, -jnp.inf, part(1 - weight, own) + part(weight, other))


@static(kw_only=False)
class Mixture(Guided):
  """(1-α) p + α q: the arithmetic mixture of the writer with the second model, as if a coin chose between them."""

  alpha: Number

  def __post_init__(self):
    good = all_between(self.alpha, 0.0, 1.0)
    require(good, 'Mixture', 'alpha must lie in [0, 1]', self.alpha)

  def __call__(self, scores, models, numbers):
    own, other = _both('Mixture', scores, models)
    alpha = jnp.asarray(value_of(self.alpha, numbers), own.dtype)
    mixed = jnp.logaddexp(jnp.log1p(-alpha) + own, jnp.log(alpha) + other)
    return jnp.where(scores == -jnp.inf, -jnp.inf, mixed)  # what earlier rules took away stays away


@static(kw_only=False)
class Blend(Guided):
  """p^(1-β) q^β, renormalised: the geometric mixture of the writer with the second model."""

  beta: Number

  def __post_init__(self):
    good = all_between(self.beta, 0.0, 1.0)
    require(good, 'Blend', 'beta must lie in [0, 1]', self.beta)

  def __call__(self, scores, models, numbers):
    return _geometric(*_both('Blend', scores, models), value_of(self.beta, numbers))


@static(kw_only=False)
class TrustRegion(Guided):
  """μ_b ∝ p^(1-b) q^b with the largest b in [0, 1] for which KL(μ_b ‖ p) is at most ε, found anew for every token.

  KL(μ_b ‖ p) grows with b, so bisection finds it. ε = 0 leaves the writer as it is. TRB, arXiv:2605.31159.
  """

  eps: Number

  def __post_init__(self):
    require(extremes(self.eps)[0] >= 0, 'TrustRegion', 'eps must not be negative', self.eps)

  def __call__(self, scores, models, numbers):
    own, other = _both('TrustRegion', scores, models)
    eps = jnp.asarray(value_of(self.eps, numbers), own.dtype)

    def inside(b):
      """Whether μ_b lies in the region; the sum has no negative part, so a small KL is no rounding."""
      blended = jax.nn.log_softmax(_geometric(own, other, b))
      return relative(blended, own).sum(axis=-1, keepdims=True) <= eps

    def halve(_, bounds):
      low, high = bounds
      middle = (low + high) / 2
      good = inside(middle)
      return jnp.where(good, middle, low), jnp.where(good, high, middle)

    nothing = jnp.zeros_like(own[:, :1])
    low, _ = jax.lax.fori_loop(0, HALVINGS, halve, (nothing, nothing + 1))
    b = jnp.where(inside(nothing + 1), 1.0, low)
    return _geometric(own, other, jnp.where(eps > 0, b, 0.0))


@static(kw_only=False)
class Replaced(Guided):
  """A token of p; where it is not among the k best of q, a token of q stands in its place.

      μ(v) = p(v) 1[v in the k best of q] + m q(v),      m = the mass of p outside these

  q is the whole distribution, of which earlier rules took what they took from p. SKD, arXiv:2410.11325.
  """

  k: int

  def __post_init__(self):
    require(self.k >= 1, 'Replaced', 'k must be at least 1', self.k)

  def __call__(self, scores, models, numbers):
    own, other = _both('Replaced', scores, models)
    among = jnp.isfinite(TopK(self.k)(other, models, numbers))
    missed = jax.nn.logsumexp(jnp.where(among, -jnp.inf, own), axis=-1, keepdims=True)
    left = jax.nn.log_softmax(jnp.where(own == -jnp.inf, -jnp.inf, other))
    return jnp.logaddexp(jnp.where(among, own, -jnp.inf), missed + left)
