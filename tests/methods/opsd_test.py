"""OPSD against its formula: the bound of entries, that of tokens, the first version, and the printed vector."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from evidence_worlds import by_token, ours, paper, same

from opd_jax.losses.divergences import ClampedPerEntry, ForwardKL
from opd_jax.methods.opsd import VARIANTS, opsd

TAU = 0.05


def entries(of):
  log_p, log_q = (jax.nn.log_softmax(log / 1.1) for log in (of.P, of.Q))
  return jnp.exp(log_q) * (log_q - log_p)


def jensen_shannon(of):
  p, q = (jax.nn.softmax(log / 1.1) for log in (of.P, of.Q))
  m = (p + q) / 2
  return 0.5 * (p * jnp.log(p / m) + q * jnp.log(q / m))


CASES = {
  'default': ({}, lambda of: jnp.minimum(entries(of), TAU).sum(-1)),
  'whole entries': (VARIANTS['whole entries'], lambda of: entries(of).sum(-1)),
  'both sides': (VARIANTS['both sides'], lambda of: jnp.clip(entries(of), -TAU, TAU).sum(-1)),
  'per token': (
    {'divergence': ForwardKL(), 'max_per_token': TAU},
    lambda of: jnp.minimum(entries(of).sum(-1), TAU),
  ),
  'first version': (VARIANTS['first version'], lambda of: jensen_shannon(of).sum(-1)),
}


@pytest.mark.parametrize('settings, formula', CASES.values(), ids=CASES)
def test_it_is_the_published_formula(settings, formula):
  same(ours(opsd(**settings)), paper(lambda of: by_token(of.mask, formula(of))))


def test_the_bound_of_entries_turns_a_position_against_its_gradient():
  """Two tokens that the teacher prefers are made less likely: value and gradient as worked out by hand."""
  z, teacher = jnp.array([2.0, 1, 0, -1, 0.5]), jnp.array([0.2, 2, 1, -2, 0])
  clamped = ClampedPerEntry(inner=ForwardKL(), max=TAU)
  log_q = jax.nn.log_softmax(teacher)
  loss = lambda divergence: lambda z: divergence(jax.nn.log_softmax(z), log_q)
  value, gradient = jax.value_and_grad(loss(clamped))(z)
  np.testing.assert_allclose(value, -0.117608, atol=1e-6)
  want = [0.008464, 0.039164, 0.014407, -0.005558, -0.056477]
  np.testing.assert_allclose(gradient, want, atol=1e-6)
  assert float(gradient @ jax.grad(loss(ForwardKL()))(z)) < 0
