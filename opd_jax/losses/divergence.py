r"""Floor 1. What a divergence is: how far the student p is from the teacher q, entry by entry of one shared support.

Every divergence here is an f-divergence of u = q / p, and one identity carries the library:

    D(p, q) = Σ_v p f(u),      ∂ D / ∂ p(v) = f(u) - u f'(u) = -w(u)

The same w, zero at agreement, is the advantage of a sampled token (OPD+, arXiv:2606.01039): exact gradient and
sampled estimator come from one line, so they cannot disagree.

Entries are *centred*: p f(u) - f'(1) (q - p), which is never negative, vanishes to second order at agreement (a
normaliser that is off by 1e-6 costs 1e-12, not 1e-6) and sums to the same on a closed support. On an open one it
does not: `Raw` gives the plain entries. The teacher gets no gradient, ever.
"""

import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from opd_jax.static import static

Entries = Float[Array, '*N C']


class Divergence:
  """Three stable elementwise functions of log-probabilities; records that inherit from it say which."""

  @property
  def name(self) -> str:
    """As it appears in tables."""
    return _snake(type(self).__name__)

  @property
  def derivative_at_one(self) -> float:
    """f'(1): what centring took away per unit of q - p."""
    return 0.0

  def entry(self, log_p: Any, log_q: Any) -> Any:
    """The centred entry."""
    raise NotImplementedError

  def pull(self, log_p: Any, log_q: Any) -> Any:
    """p · w(q / p): the negative derivative of the entry with respect to log p."""
    raise NotImplementedError

  def weight(self, log_u: Any) -> Any:
    """w(u): the advantage of a sampled token."""
    raise NotImplementedError

  def entries(self, log_p: Entries, log_q: Entries) -> Entries:
    """Differentiable in log_p; an entry that neither holds (both -inf) is zero."""
    return _entries(self, log_p, log_q)

  def __call__(self, log_p: Entries, log_q: Entries) -> Float[Array, '*N']:
    return self.entries(log_p, log_q).sum(axis=-1)


def _snake(name: str) -> str:
  return (
    ''.join(f'_{letter.lower()}' if letter.isupper() else letter for letter in name)
    .strip('_')
    .replace('_k_l', '_kl')
  )


@functools.partial(jax.custom_jvp, nondiff_argnums=(0,))
def _entries(divergence: Divergence, log_p, log_q):
  return divergence.entry(log_p, log_q)


@_entries.defjvp
def _entries_jvp(divergence: Divergence, primals, tangents):
  log_p, log_q = primals
  return divergence.entry(log_p, log_q), -divergence.pull(log_p, log_q) * tangents[0]


@static(kw_only=False)
class Raw(Divergence):
  """The plain entries p f(u), as papers print them: what a sum over an *open* support is made of."""

  inner: Divergence

  @property
  def name(self) -> str:
    return f'raw {self.inner.name}'

  def entry(self, log_p, log_q):
    mass = jnp.exp(log_q) - jnp.exp(log_p)
    return self.inner.entry(log_p, log_q) + self.inner.derivative_at_one * mass

  def pull(self, log_p, log_q):
    return self.inner.pull(log_p, log_q) + self.inner.derivative_at_one * jnp.exp(log_p)

  def weight(self, log_u):
    return self.inner.weight(log_u)


@static
class ClampedPerEntry(Divergence):
  """Plain entries held between two bounds (OPSD's clip). An entry at a bound has *no* gradient.

  The rest then no longer cancel, and the sum can push against the true gradient: `opd certify` shows by how much.
  """

  inner: Divergence
  max: float
  min: float = -math.inf

  @property
  def name(self) -> str:
    return f'{self.inner.name} clamped per entry to [{self.min:g}, {self.max:g}]'

  def entry(self, log_p, log_q):
    return jnp.clip(Raw(self.inner).entry(log_p, log_q), self.min, self.max)

  def pull(self, log_p, log_q):
    plain = Raw(self.inner)
    entry = plain.entry(log_p, log_q)
    return jnp.where((entry > self.min) & (entry < self.max), plain.pull(log_p, log_q), 0.0)

  def weight(self, log_u):
    return self.inner.weight(log_u)
