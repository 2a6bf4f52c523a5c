"""Floor 1. The divergences, as three stable elementwise functions each; `divergence` says what they promise."""

import jax.numpy as jnp

from opd_jax.losses.divergence import ClampedPerEntry, Divergence, Raw
from opd_jax.losses.stable import log_ratio, mixed, relative, squared_over, times
from opd_jax.static import static

__all__ = [
  'Alpha', 'BoundedReverseKL', 'ClampedPerEntry', 'Divergence', 'ForwardKL', 'Hellinger', 'Jeffreys', 'JensenShannon',
  'Neyman', 'Pearson', 'Raw', 'ReverseKL', 'SkewForward', 'SkewReverse', 'TotalVariation',
]  # fmt: skip


def _inside(name: str, what: str, value: float, ends: str) -> None:
  if not 0.0 < value < 1.0:
    raise ValueError(f'{name}: {what} must lie strictly between 0 and 1, got {value}. {ends}')


@static
class ForwardKL(Divergence):
  r"""Mass-covering: KL(q ‖ p) = Σ q log(q / p).   w = u - 1.

  >>> log_p, log_q = jnp.log(jnp.array([0.6, 0.4])), jnp.log(jnp.array([0.9, 0.1]))
  >>> print(f'{ForwardKL()(log_p, log_q):.4f}')
  0.2263
  """

  @property
  def derivative_at_one(self) -> float:
    return 1.0

  def entry(self, log_p, log_q):
    return relative(log_q, log_p)

  def pull(self, log_p, log_q):
    return jnp.exp(log_q) - jnp.exp(log_p)

  def weight(self, log_u):
    return jnp.expm1(log_u)


@static
class ReverseKL(Divergence):
  r"""Mode-seeking: KL(p ‖ q) = Σ p log(p / q).   w = log u.

  >>> log_p, log_q = jnp.log(jnp.array([0.6, 0.4])), jnp.log(jnp.array([0.9, 0.1]))
  >>> print(f'{ReverseKL()(log_p, log_q):.4f}')
  0.3112
  """

  @property
  def derivative_at_one(self) -> float:
    return -1.0

  def entry(self, log_p, log_q):
    return relative(log_p, log_q)

  def pull(self, log_p, log_q):
    return times(jnp.exp(log_p), log_ratio(log_p, log_q))

  def weight(self, log_u):
    return log_u


@static
class BoundedReverseKL(Divergence):
  r"""Σ p clip(log(p / q), ±c).   w = log u, and clip(log u, ±c) + 1 beyond ±c: there p alone has a gradient.

  An option of arXiv:2603.25562. Beyond the bound w jumps by one: the clip takes the gradient of the logarithm away.
  """

  bound: float = 5.0

  def __post_init__(self):
    if not self.bound > 0:
      raise ValueError(f'BoundedReverseKL: bound must be above 0, got {self.bound}.')

  @property
  def name(self) -> str:
    return f'bounded_reverse_kl({self.bound:g})'

  @property
  def derivative_at_one(self) -> float:
    return -1.0

  def entry(self, log_p, log_q):
    gap = log_ratio(log_p, log_q)
    beyond = gap - jnp.clip(gap, -self.bound, self.bound)
    return relative(log_p, log_q) + times(jnp.exp(log_p), beyond)

  def pull(self, log_p, log_q):
    return times(jnp.exp(log_p), self.weight(log_ratio(log_p, log_q)))

  def weight(self, log_u):
    return jnp.clip(log_u, -self.bound, self.bound) + (jnp.abs(log_u) > self.bound)


@static
class JensenShannon(Divergence):
  r"""Generalised JSD: β KL(q ‖ m) + (1 - β) KL(p ‖ m), m = β q + (1 - β) p.   w = (1 - β) log(β u + 1 - β).

  GKD, arXiv:2306.13649, with β the teacher's weight. Both limits of the formula are zero; forward and reverse KL
  are the limits of D / β and D / (1 - β), which is why the ends are names of their own.
  """

  beta: float = 0.5

  def __post_init__(self):
    _inside('JensenShannon', 'beta', self.beta, 'Its ends are ForwardKL and ReverseKL; use those.')

  @property
  def name(self) -> str:
    return f'jensen_shannon({self.beta:g})'

  def entry(self, log_p, log_q):
    log_m = mixed(log_p, log_q, teacher=self.beta)
    return self.beta * relative(log_q, log_m) + (1 - self.beta) * relative(log_p, log_m)

  def pull(self, log_p, log_q):
    gap = mixed(log_p, log_q, teacher=self.beta) - log_p
    return (1 - self.beta) * times(jnp.exp(log_p), gap)

  def weight(self, log_u):
    return (1 - self.beta) * mixed(jnp.zeros_like(log_u), log_u, teacher=self.beta)


@static
class Jeffreys(Divergence):
  r"""Both KLs: Σ (q - p) log(q / p).   w = u - 1 + log u."""

  def entry(self, log_p, log_q):
    return ForwardKL().entry(log_p, log_q) + ReverseKL().entry(log_p, log_q)

  def pull(self, log_p, log_q):
    return ForwardKL().pull(log_p, log_q) + ReverseKL().pull(log_p, log_q)

  def weight(self, log_u):
    return ForwardKL().weight(log_u) + ReverseKL().weight(log_u)


@static
class SkewForward(Divergence):
  r"""KL(q ‖ m), m = α q + (1 - α) p.   w = (1 - α)(u / (α u + 1 - α) - 1), at most (1 - α)² / α.

  DistiLLM, arXiv:2402.03898.
  """

  alpha: float = 0.1

  def __post_init__(self):
    _inside('SkewForward', 'alpha', self.alpha, 'At 0 it is ForwardKL.')

  @property
  def name(self) -> str:
    return f'skew_forward({self.alpha:g})'

  @property
  def derivative_at_one(self) -> float:
    return 1 - self.alpha

  def entry(self, log_p, log_q):
    return relative(log_q, mixed(log_p, log_q, teacher=self.alpha))

  def pull(self, log_p, log_q):
    log_m = mixed(log_p, log_q, teacher=self.alpha)
    return (1 - self.alpha) * (jnp.exp(log_q + log_ratio(log_m, log_p)) - jnp.exp(log_p))

  def weight(self, log_u):
    log_m = mixed(jnp.zeros_like(log_u), log_u, teacher=self.alpha)
    return (1 - self.alpha) * jnp.expm1(log_u - log_m)


@static
class SkewReverse(Divergence):
  r"""KL(p ‖ m), m = α p + (1 - α) q.   w = log m + α / m - α, m = α + (1 - α) u; -log m ≤ -log α.

  DistiLLM, arXiv:2402.03898.
  """

  alpha: float = 0.1

  def __post_init__(self):
    _inside('SkewReverse', 'alpha', self.alpha, 'At 0 it is ReverseKL.')

  @property
  def name(self) -> str:
    return f'skew_reverse({self.alpha:g})'

  @property
  def derivative_at_one(self) -> float:
    return self.alpha - 1

  def entry(self, log_p, log_q):
    return relative(log_p, mixed(log_p, log_q, teacher=1 - self.alpha))

  def pull(self, log_p, log_q):
    return times(jnp.exp(log_p), self.weight(log_ratio(log_p, log_q)))

  def weight(self, log_u):
    log_m = mixed(jnp.zeros_like(log_u), log_u, teacher=1 - self.alpha)
    return log_m + self.alpha * jnp.expm1(-log_m)


@static
class Alpha(Divergence):
  r"""Cressie-Read: Σ (q^α p^(1-α) - p - α (q - p)) / (α (α - 1)).   w = (u^α - 1) / α."""

  alpha: float

  def __post_init__(self):
    if self.alpha in (0.0, 1.0):
      raise ValueError(
        f'Alpha: alpha={self.alpha:g} is a limit with a name: ReverseKL at 0, ForwardKL at 1.'
      )

  @property
  def name(self) -> str:
    return f'alpha({self.alpha:g})'

  def entry(self, log_p, log_q):
    alpha, gap = self.alpha, log_ratio(log_p, log_q)
    near = jnp.abs(gap) < 1
    small = jnp.where(near, gap, 0.0)
    close = jnp.exp(log_p) * (jnp.expm1(alpha * small) - alpha * jnp.expm1(small))
    far = self._power(log_p, log_q) - (1 - alpha) * jnp.exp(log_p) - alpha * jnp.exp(log_q)
    return jnp.where(near, close, far) / (alpha * (alpha - 1))

  def _power(self, log_p, log_q):
    power = jnp.exp(self.alpha * log_q + (1 - self.alpha) * log_p)
    return jnp.where(log_p == log_q, jnp.exp(log_p), power)

  def pull(self, log_p, log_q):
    return (self._power(log_p, log_q) - jnp.exp(log_p)) / self.alpha

  def weight(self, log_u):
    return jnp.expm1(self.alpha * log_u) / self.alpha


@static
class Pearson(Divergence):
  r"""χ²: Σ (q - p)² / p.   w = u² - 1. Unbounded: give it a support or a clamp."""

  def entry(self, log_p, log_q):
    return squared_over(log_q, log_p)

  def pull(self, log_p, log_q):
    return jnp.exp(log_q + log_ratio(log_p, log_q)) - jnp.exp(log_p)

  def weight(self, log_u):
    return jnp.expm1(2 * log_u)


@static
class Neyman(Divergence):
  r"""χ² the other way: Σ (p - q)² / q.   w = 2 - 2 / u. Unbounded where the teacher has no mass."""

  def entry(self, log_p, log_q):
    return squared_over(log_p, log_q)

  def pull(self, log_p, log_q):
    return 2 * (jnp.exp(log_p) - jnp.exp(log_p + log_ratio(log_q, log_p)))

  def weight(self, log_u):
    return -2 * jnp.expm1(-log_u)


@static
class TotalVariation(Divergence):
  r"""½ Σ |p - q|.   w = ½ sign(u - 1): the size of a disagreement does not count."""

  def entry(self, log_p, log_q):
    return 0.5 * jnp.abs(jnp.exp(log_p) - jnp.exp(log_q))

  def pull(self, log_p, log_q):
    return 0.5 * jnp.exp(log_p) * jnp.sign(log_ratio(log_p, log_q))

  def weight(self, log_u):
    return 0.5 * jnp.sign(log_u)


@static
class Hellinger(Divergence):
  r"""Squared Hellinger: Σ (√q - √p)².   w = √u - 1."""

  def entry(self, log_p, log_q):
    return jnp.square(jnp.exp(log_q / 2) - jnp.exp(log_p / 2))

  def pull(self, log_p, log_q):
    return jnp.exp((log_p + log_q) / 2) - jnp.exp(log_p)

  def weight(self, log_u):
    return jnp.expm1(log_u / 2)
