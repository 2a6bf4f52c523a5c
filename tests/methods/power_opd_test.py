"""PowerOPD against its formula, its competitors, the divergence behind it, and its limit."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from evidence_worlds import (
  MASK,
  RESPONSE,
  STUDENT_LOGITS,
  TEACHER_LOGITS,
  V,
  by_token,
  ours,
  paper,
  reinforce,
  same,
)

from opd_jax.methods.opd import opd
from opd_jax.methods.power_opd import VARIANTS, Power, power_opd

CASES = {
  'exponent 5': ({}, lambda q, p: jnp.exp(q) ** 5 - jnp.exp(p) ** 5),
  'exponent 1': (VARIANTS['exponent 1'], lambda q, p: jnp.exp(q) - jnp.exp(p)),
  'exponent 500': (VARIANTS['exponent 500'], lambda q, p: jnp.exp(q) ** 500 - jnp.exp(p) ** 500),
  'clipped': (VARIANTS['clipped'], lambda q, p: jnp.minimum(jnp.maximum(q - p, -1), 1)),
  'tanh': (VARIANTS['tanh'], lambda q, p: 1 - 2 / (jnp.exp(2 * (q - p)) + 1)),
}


@pytest.mark.parametrize('settings, advantage', CASES.values(), ids=CASES)
def test_it_is_the_published_formula(settings, advantage):
  same(ours(power_opd(**settings)), paper(lambda of: reinforce(of, advantage(of.q, of.p))))


@pytest.mark.parametrize('exponent', [0.5, 1.0, 5.0])
def test_its_expected_gradient_is_that_of_a_bregman_divergence(exponent):
  """By enumeration: every token once at every position, weighed with the student's probability of it."""
  method = power_opd(reward=Power(exponent=exponent))
  probs = np.asarray(jax.nn.softmax(STUDENT_LOGITS))
  expected = np.zeros_like(STUDENT_LOGITS)
  for token in range(V):
    sampled = ours(method, response=np.full_like(RESPONSE, token))[1]
    expected += probs[..., token, None] * np.asarray(sampled)

  def bregman(of):
    p, q, a = jnp.exp(of.P), jnp.exp(of.Q), exponent
    return by_token(MASK, ((p ** (1 + a) - q ** (1 + a)) / (1 + a) - (p - q) * q**a).sum(-1))

  np.testing.assert_allclose(expected, paper(bregman)[1], rtol=0, atol=1e-12)


def test_a_small_exponent_is_opd_times_it():
  tiny = ours(power_opd(reward=Power(exponent=1e-7)))[1]
  np.testing.assert_allclose(np.asarray(tiny) / 1e-7, ours(opd())[1], rtol=0, atol=1e-6)


@pytest.mark.parametrize('settings', [each for each, _ in CASES.values()], ids=CASES)
def test_a_student_that_is_its_teacher_stays(settings):
  gradient = ours(power_opd(**settings), student=TEACHER_LOGITS)[1]
  np.testing.assert_allclose(gradient, 0.0, rtol=0, atol=1e-15)


def test_an_exponent_that_is_not_positive_is_refused():
  with pytest.raises(ValueError, match='exponent must be above 0'):
    Power(exponent=0.0)
