r"""Floor 1. How far the student p is from the teacher q, entry by entry of one shared support.

Every divergence here is an f-divergence of u = q / p, and one identity carries the library:

    D(p, q) = Σ_v p f(u),      ∂ D / ∂ p(v) = f(u) - u f'(u) = -w(u)

The same w, zero at agreement, is the advantage of a sampled token (OPD+, arXiv:2606.01039): exact gradient and
sampled estimator come from one line, so they cannot disagree.

Entries are *centred*: p f(u) - f'(1) (q - p), which is never negative, vanishes to second order at agreement (a
normaliser that is off by 1e-6 costs 1e-12, not 1e-6) and sums to the same on a closed support. On an open one it
does not: `raw` gives the plain entries. The teacher gets no gradient, ever.
"""

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

Entries = Float[Array, '*N C']
Elementwise = Callable[[Any, Any], Any]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Divergence:
  """One divergence, as three stable elementwise functions of log-probabilities.

  Args:
    name: as it appears in tables.
    entry: (log p, log q) -> the centred entry.
    pull: (log p, log q) -> p · w(q / p), the negative derivative of the entry with respect to log p.
    weight: log u -> w(u), the advantage of a sampled token.
    slope: f'(1), what centring took away per unit of q - p.
  """

  name: str
  entry: Elementwise
  pull: Elementwise
  weight: Callable[[Any], Any]
  slope: float = 0.0

  def entries(self, log_p: Entries, log_q: Entries) -> Entries:
    """Differentiable in log_p; an entry that neither holds (both -inf) is zero."""
    return _entries(self, log_p, log_q)

  def __call__(self, log_p: Entries, log_q: Entries) -> Float[Array, '*N']:
    return self.entries(log_p, log_q).sum(axis=-1)


@functools.partial(jax.custom_jvp, nondiff_argnums=(0,))
def _entries(divergence: Divergence, log_p, log_q):
  return divergence.entry(log_p, log_q)


@_entries.defjvp
def _entries_jvp(divergence: Divergence, primals, tangents):
  log_p, log_q = primals
  return divergence.entry(log_p, log_q), -divergence.pull(log_p, log_q) * tangents[0]


def log_ratio(log_p: Float[Array, '*N'], log_q: Float[Array, '*N']) -> Float[Array, '*N']:
  """log u; zero where neither has mass."""
  return jnp.where(log_p == log_q, 0.0, log_q - log_p)


def _times(mass, log):
  """mass · log, with 0 · ∞ = 0."""
  return mass * jnp.where(mass > 0, log, 0.0)


def _relative(log_a, log_b):
  """a log(a / b) - a + b, without cancellation where a and b are close and without overflow where they are not."""
  gap = log_ratio(log_b, log_a)  # log(a / b)
  near = jnp.abs(gap) < 1
  small = jnp.where(near, gap, 0.0)
  a, b = jnp.exp(log_a), jnp.exp(log_b)
  return jnp.where(near, a * (jnp.expm1(-small) + small), _times(a, gap) - a + b)


def _mixed(log_p, log_q, *, teacher: float):
  """log( teacher · q + (1 - teacher) · p ); exactly log p where the two are equal."""
  gap = log_ratio(log_p, log_q)
  near = jnp.abs(gap) < 1
  close = log_p + jnp.log1p(teacher * jnp.expm1(jnp.where(near, gap, 0.0)))
  return jnp.where(
    near, close, jnp.logaddexp(math.log(teacher) + log_q, math.log1p(-teacher) + log_p)
  )


def _inside(name: str, what: str, value: float, ends: str) -> None:
  if not 0.0 < value < 1.0:
    raise ValueError(f'{name}: {what} must lie strictly between 0 and 1, got {value}. {ends}')


@functools.cache
def forward_kl() -> Divergence:
  r"""Mass-covering: KL(q ‖ p) = Σ q log(q / p).   w = u - 1.

  >>> p, q = jnp.log(jnp.array([0.6, 0.4])), jnp.log(jnp.array([0.9, 0.1]))
  >>> print(f'{forward_kl()(p, q):.4f}')
  0.2263
  """
  return Divergence(
    name='forward_kl',
    entry=lambda p, q: _relative(q, p),
    pull=lambda p, q: jnp.exp(q) - jnp.exp(p),
    weight=jnp.expm1,
    slope=1.0,
  )


@functools.cache
def reverse_kl() -> Divergence:
  r"""Mode-seeking: KL(p ‖ q) = Σ p log(p / q).   w = log u.

  >>> p, q = jnp.log(jnp.array([0.6, 0.4])), jnp.log(jnp.array([0.9, 0.1]))
  >>> print(f'{reverse_kl()(p, q):.4f}')
  0.3112
  """
  return Divergence(
    name='reverse_kl',
    entry=lambda p, q: _relative(p, q),
    pull=lambda p, q: _times(jnp.exp(p), log_ratio(p, q)),
    weight=lambda log_u: log_u,
    slope=-1.0,
  )


@functools.cache
def jensen_shannon(*, beta: float = 0.5) -> Divergence:
  r"""Generalised JSD: β KL(q ‖ m) + (1 - β) KL(p ‖ m), m = β q + (1 - β) p.   w = (1 - β) log(β u + 1 - β).

  GKD, arXiv:2306.13649, with β the teacher's weight. Both limits of the formula are zero; forward and reverse KL
  are the limits of D / β and D / (1 - β), which is why the ends are names of their own.
  """
  _inside('jensen_shannon', 'beta', beta, 'Its ends are forward_kl and reverse_kl; use those.')

  def entry(p, q):
    m = _mixed(p, q, teacher=beta)
    return beta * _relative(q, m) + (1 - beta) * _relative(p, m)

  def pull(p, q):
    return (1 - beta) * _times(jnp.exp(p), _mixed(p, q, teacher=beta) - p)

  def weight(log_u):
    return (1 - beta) * _mixed(jnp.zeros_like(log_u), log_u, teacher=beta)

  return Divergence(name=f'jensen_shannon({beta:g})', entry=entry, pull=pull, weight=weight)


@functools.cache
def jeffreys() -> Divergence:
  r"""Both KLs: Σ (q - p) log(q / p).   w = u - 1 + log u."""
  both = forward_kl(), reverse_kl()
  return Divergence(
    name='jeffreys',
    entry=lambda p, q: sum(each.entry(p, q) for each in both),
    pull=lambda p, q: sum(each.pull(p, q) for each in both),
    weight=lambda log_u: sum(each.weight(log_u) for each in both),
  )


@functools.cache
def skew_forward(*, alpha: float = 0.1) -> Divergence:
  r"""KL(q ‖ m), m = α q + (1 - α) p.   w = (1 - α)(u / (α u + 1 - α) - 1), at most (1 - α)² / α.

  DistiLLM, arXiv:2402.03898.
  """
  _inside('skew_forward', 'alpha', alpha, 'At 0 it is forward_kl.')

  def pull(p, q):
    return (1 - alpha) * (jnp.exp(q + log_ratio(_mixed(p, q, teacher=alpha), p)) - jnp.exp(p))

  def weight(log_u):
    return (1 - alpha) * jnp.expm1(log_u - _mixed(jnp.zeros_like(log_u), log_u, teacher=alpha))

  entry = lambda p, q: _relative(q, _mixed(p, q, teacher=alpha))
  return Divergence(
    name=f'skew_forward({alpha:g})', entry=entry, pull=pull, weight=weight, slope=1 - alpha
  )


@functools.cache
def skew_reverse(*, alpha: float = 0.1) -> Divergence:
  r"""KL(p ‖ m), m = α p + (1 - α) q.   w = log m + α / m - α, m = α + (1 - α) u; -log m ≤ -log α.

  DistiLLM, arXiv:2402.03898.
  """
  _inside('skew_reverse', 'alpha', alpha, 'At 0 it is reverse_kl.')

  def weight(log_u):
    log_m = _mixed(jnp.zeros_like(log_u), log_u, teacher=1 - alpha)
    return log_m + alpha * jnp.expm1(-log_m)

  entry = lambda p, q: _relative(p, _mixed(p, q, teacher=1 - alpha))
  pull = lambda p, q: _times(jnp.exp(p), weight(log_ratio(p, q)))
  return Divergence(
    name=f'skew_reverse({alpha:g})', entry=entry, pull=pull, weight=weight, slope=alpha - 1
  )


@functools.cache
def alpha_family(*, alpha: float) -> Divergence:
  r"""Cressie-Read: Σ (q^α p^(1-α) - p - α (q - p)) / (α (α - 1)).   w = (u^α - 1) / α."""
  if alpha in (0.0, 1.0):
    raise ValueError(
      f'alpha_family: alpha={alpha:g} is a limit with a name: reverse_kl at 0, forward_kl at 1.'
    )

  def entry(p, q):
    gap = log_ratio(p, q)
    near = jnp.abs(gap) < 1
    small = jnp.where(near, gap, 0.0)
    close = jnp.exp(p) * (jnp.expm1(alpha * small) - alpha * jnp.expm1(small))
    far = _power(p, q) - (1 - alpha) * jnp.exp(p) - alpha * jnp.exp(q)
    return jnp.where(near, close, far) / (alpha * (alpha - 1))

  def _power(p, q):
    return jnp.where(p == q, jnp.exp(p), jnp.exp(alpha * q + (1 - alpha) * p))

  return Divergence(
    name=f'alpha({alpha:g})',
    entry=entry,
    pull=lambda p, q: (_power(p, q) - jnp.exp(p)) / alpha,
    weight=lambda log_u: jnp.expm1(alpha * log_u) / alpha,
  )


def _squared_over(log_a, log_b):
  """(a - b)² / b."""
  gap = log_ratio(log_b, log_a)
  near = jnp.minimum(gap, 10.0)
  far = jnp.exp(log_a + gap) - 2 * jnp.exp(log_a) + jnp.exp(log_b)
  return jnp.where(gap < 10.0, jnp.exp(log_b) * jnp.square(jnp.expm1(near)), far)


@functools.cache
def pearson() -> Divergence:
  r"""χ²: Σ (q - p)² / p.   w = u² - 1. Unbounded: give it a support or a clamp."""
  return Divergence(
    name='pearson',
    entry=_flipped(_squared_over),
    pull=lambda p, q: jnp.exp(q + log_ratio(p, q)) - jnp.exp(p),
    weight=lambda log_u: jnp.expm1(2 * log_u),
  )


def _flipped(function: Elementwise) -> Elementwise:
  return lambda p, q: function(q, p)


@functools.cache
def neyman() -> Divergence:
  r"""χ² the other way: Σ (p - q)² / q.   w = 2 - 2 / u. Unbounded where the teacher has no mass."""
  return Divergence(
    name='neyman',
    entry=_squared_over,
    pull=lambda p, q: 2 * (jnp.exp(p) - jnp.exp(p + log_ratio(q, p))),
    weight=lambda log_u: -2 * jnp.expm1(-log_u),
  )


@functools.cache
def total_variation() -> Divergence:
  r"""½ Σ |p - q|.   w = ½ sign(u - 1): the size of a disagreement does not count."""
  return Divergence(
    name='total_variation',
    entry=lambda p, q: 0.5 * jnp.abs(jnp.exp(p) - jnp.exp(q)),
    pull=lambda p, q: 0.5 * jnp.exp(p) * jnp.sign(log_ratio(p, q)),
    weight=lambda log_u: 0.5 * jnp.sign(log_u),
  )


@functools.cache
def hellinger() -> Divergence:
  r"""Squared Hellinger: Σ (√q - √p)².   w = √u - 1."""
  return Divergence(
    name='hellinger',
    entry=lambda p, q: jnp.square(jnp.exp(q / 2) - jnp.exp(p / 2)),
    pull=lambda p, q: jnp.exp((p + q) / 2) - jnp.exp(p),
    weight=lambda log_u: jnp.expm1(log_u / 2),
  )


@functools.cache
def raw(divergence: Divergence) -> Divergence:
  """The plain entries p f(u), as papers print them: what a sum over an *open* support is made of."""
  mass = lambda p, q: jnp.exp(q) - jnp.exp(p)
  return dataclasses.replace(
    divergence,
    name=f'raw {divergence.name}',
    entry=lambda p, q: divergence.entry(p, q) + divergence.slope * mass(p, q),
    pull=lambda p, q: divergence.pull(p, q) + divergence.slope * jnp.exp(p),
    slope=0.0,  # nothing is taken away any more
  )


@functools.cache
def clamped_per_entry(
  divergence: Divergence, *, most: float, least: float = -math.inf
) -> Divergence:
  """Plain entries held between two bounds (OPSD's clip). An entry at a bound has *no* gradient.

  The rest then no longer cancel, and the sum can push against the true gradient: `opd certify` shows by how much.
  """
  plain = raw(divergence)

  def pull(p, q):
    entry = plain.entry(p, q)
    return jnp.where((entry > least) & (entry < most), plain.pull(p, q), 0.0)

  return dataclasses.replace(
    plain,
    name=f'{divergence.name} clamped per entry to [{least:g}, {most:g}]',
    entry=lambda p, q: jnp.clip(plain.entry(p, q), least, most),
    pull=pull,
  )
