"""Floor 1. Elementwise arithmetic of log-probabilities that neither cancels nor overflows."""

import math

import jax.numpy as jnp
from jaxtyping import Array, Float


def log_ratio(log_p: Float[Array, '*N'], log_q: Float[Array, '*N']) -> Float[Array, '*N']:
  """log u; zero where neither has mass."""
  return jnp.where(log_p == log_q, 0.0, log_q - log_p)


def times(mass, log):
  """mass · log, with 0 · ∞ = 0."""
  return mass * jnp.where(mass > 0, log, 0.0)


def relative(log_a, log_b):
  """a log(a / b) - a + b, without cancellation where a and b are close and without overflow where they are not."""
  gap = log_ratio(log_b, log_a)  # log(a / b)
  near = jnp.abs(gap) < 1
  small = jnp.where(near, gap, 0.0)
  a, b = jnp.exp(log_a), jnp.exp(log_b)
  return jnp.where(near, a * (jnp.expm1(-small) + small), times(a, gap) - a + b)


def mixed(log_p, log_q, *, teacher: float):
  """log( teacher · q + (1 - teacher) · p ); exactly log p where the two are equal."""
  gap = log_ratio(log_p, log_q)
  near = jnp.abs(gap) < 1
  close = log_p + jnp.log1p(teacher * jnp.expm1(jnp.where(near, gap, 0.0)))
  return jnp.where(
    near, close, jnp.logaddexp(math.log(teacher) + log_q, math.log1p(-teacher) + log_p)
  )


def squared_over(log_a, log_b):
  """(a - b)² / b."""
  gap = log_ratio(log_b, log_a)
  near = jnp.minimum(gap, 10.0)
  far = jnp.exp(log_a + gap) - 2 * jnp.exp(log_a) + jnp.exp(log_b)
  return jnp.where(gap < 10.0, jnp.exp(log_b) * jnp.square(jnp.expm1(near)), far)
