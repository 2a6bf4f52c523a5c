"""ExOPD against its formula, sampled and exact, and the expectation that binds the two."""

import jax
import jax.numpy as jnp
import numpy as np
from evidence_worlds import (
  REFERENCE_LOGITS,
  RESPONSE,
  STUDENT_LOGITS,
  TEACHER_LOGITS,
  V,
  at_ratio_one,
  by_token,
  ours,
  paper,
  same,
)

from opd_jax.methods.exopd import VARIANTS, Extrapolated, exopd
from opd_jax.methods.opd import opd


def test_it_is_the_published_formula():
  same(ours(exopd()), paper(lambda of: at_ratio_one(of, of.q - of.p + 0.25 * (of.q - of.r))))


def test_the_exact_variant_is_two_divergences():
  def formula(of):
    kl = lambda other: (jnp.exp(of.P) * (of.P - other)).sum(-1)
    return by_token(of.mask, 1.25 * kl(of.Q) - 0.25 * kl(of.R))

  same(ours(exopd(**VARIANTS['exact'])), paper(formula))


def test_at_strength_one_it_is_opd():
  plain = ours(exopd(strength=1.0))
  np.testing.assert_allclose(plain[1], ours(opd())[1], rtol=0, atol=1e-14)


def test_the_exact_gradient_is_the_expectation_of_the_sampled_one():
  """By enumeration: every token once at every position, weighed with the student's probability of it."""
  probs = np.asarray(jax.nn.softmax(STUDENT_LOGITS))
  expected = np.zeros_like(STUDENT_LOGITS)
  for token in range(V):
    sampled = ours(exopd(), response=np.full_like(RESPONSE, token))[1]
    expected += probs[..., token, None] * np.asarray(sampled)
  np.testing.assert_allclose(expected, ours(exopd(exact=True))[1], rtol=0, atol=1e-12)


def test_it_stays_at_the_optimum_that_it_claims():
  claimed = exopd(exact=True).claim.optimum
  assert claimed == Extrapolated(strength=1.25)
  optimum = np.asarray(claimed(TEACHER_LOGITS, REFERENCE_LOGITS))
  gradient = ours(exopd(exact=True), student=optimum)[1]
  np.testing.assert_allclose(gradient, 0.0, rtol=0, atol=1e-15)
