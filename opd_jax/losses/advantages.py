r"""Floor 1. What a sampled token is worth: numbers made of log-probabilities, positive where p(y) should rise.

d = log q(y) - log p(y) is the gap, u = exp d. Nothing here has a gradient or sums over anything: an advantage goes
into a coefficient, and a coefficient is data.
"""

import math

import jax.numpy as jnp
from jaxtyping import Float

from opd_jax.losses.divergences import Divergence
from opd_jax.types import AnyArray

Numbers = Float[AnyArray, '*N']


def log_ratio(teacher_logp: Numbers, student_logp: Numbers) -> Numbers:
  r"""d, the sampled reverse KL with its sign turned. Unbiased on-policy: ∇ KL(p ‖ q) = E_p[-d ∇ log p]."""
  return teacher_logp - student_logp


def corrected(divergence: Divergence, gap: Numbers) -> Numbers:
  r"""w_f(u) = -f(u) + u f'(u), zero at agreement: E_p[w ∇ log p] = -∇ D_f exactly.   OPD+, arXiv:2606.01039.

  Bound the gap first (`clipped`): forward KL's u - 1 is exponential in it.
  """
  return divergence.weight(gap)


def naive(divergence: Divergence, gap: Numbers) -> Numbers:
  r"""-f(u), the reward that forgets that f depends on the student. Biased for all but reverse KL; a control."""
  return -(
    divergence.entry(jnp.zeros_like(gap), gap) + divergence.derivative_at_one * jnp.expm1(gap)
  )


def bridge(gap: Numbers, *, beta: float) -> Numbers:
  r"""log(1 + β (u - 1)) / β: forward KL at β → 0, Jensen-Shannon between, reverse KL at β = 1.

  Never below log(1 - β) / β, and logarithmic above.

  >>> print(bridge(jnp.log(jnp.array([0.5, 1.0, 2.0])), beta=0.5).round(4))
  [-0.5754  0.      0.8109]
  """
  if not 0.0 <= beta <= 1.0:
    raise ValueError(
      f'bridge: beta must lie between 0 (forward KL) and 1 (reverse KL), got {beta}.'
    )
  if beta == 0.0:
    return jnp.expm1(gap)
  if beta == 1.0:
    return gap
  near = jnp.log1p(beta * jnp.expm1(jnp.minimum(gap, 1.0)))
  return jnp.where(gap < 1.0, near, jnp.logaddexp(math.log(beta) + gap, math.log1p(-beta))) / beta


def proximal(gap: Numbers, *, fraction: float) -> Numbers:
  r"""log(a u + 1 - a), a = the part of the teacher in the target a q + (1 - a) p.   TOP-D, arXiv:2607.04751."""
  return fraction * bridge(gap, beta=fraction)


def power(teacher_logp: Numbers, student_logp: Numbers, *, exponent: float) -> Numbers:
  r"""q(y)^a - p(y)^a, between -1 and 1.   PowerOPD, arXiv:2606.17199."""
  return jnp.exp(exponent * teacher_logp) - jnp.exp(exponent * student_logp)


def clipped(gap: Numbers, *, min: float, max: float) -> Numbers:
  """The gap held between two bounds: a token beyond them keeps its sign and loses its size."""
  return jnp.clip(gap, min, max)


def log_compressed(gap: Numbers) -> Numbers:
  """sign(d) log(1 + |d|).   arXiv:2607.13399."""
  return jnp.sign(gap) * jnp.log1p(jnp.abs(gap))


def squashed(gap: Numbers, *, bound: float = 1.0) -> Numbers:
  """bound · tanh(d / bound)."""
  return bound * jnp.tanh(gap / bound)


def extrapolated(
  teacher_logp: Numbers, student_logp: Numbers, reference_logp: Numbers, *, strength: float
) -> Numbers:
  r"""d + (λ - 1)(log q - log r): beyond the teacher, away from a reference r, for λ > 1.   ExOPD, arXiv:2602.12125."""
  return log_ratio(teacher_logp, student_logp) + (strength - 1) * (teacher_logp - reference_logp)


def delta(teacher_logp: Numbers, base_logp: Numbers) -> Numbers:
  r"""log q - log q_base: what the teacher's own training changed.   OPD², arXiv:2607.15161 (before its centring)."""
  return teacher_logp - base_logp
