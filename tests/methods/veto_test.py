"""Veto against its formula: both directions, the target by step, and where a constant β leads."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from evidence_worlds import (
  REFERENCE_LOGITS,
  RESPONSE,
  STUDENT_LOGITS,
  TEACHER_LOGITS,
  K,
  V,
  by_token,
  from_logits,
  ours,
  paper,
  reinforce,
  same,
  stop,
  through_the_pass,
  weigh,
)

from opd_jax.claims import Converges, Nothing
from opd_jax.losses.divergences import ForwardKL
from opd_jax.methods.gkd import gkd
from opd_jax.methods.opd import opd
from opd_jax.methods.veto import VARIANTS, Sharpened, veto
from opd_jax.ramps import Piecewise


def at_steps(method, steps):
  """Loss and gradient at some steps, of one program."""
  logits = STUDENT_LOGITS, TEACHER_LOGITS, REFERENCE_LOGITS
  evidence, targets = from_logits(*logits, RESPONSE, method)
  program = weigh(method)
  for step in steps:
    terms = program(evidence._replace(step=jnp.int64(step)))
    yield through_the_pass(STUDENT_LOGITS, RESPONSE, targets, terms)


def forward(of, beta, k):
  """-Σ Q log p over the k entries that the student likes best."""
  best = jax.lax.top_k(stop(of.P), k)[1]
  own, theirs = (jnp.take_along_axis(x, best, -1) for x in (of.P, of.Q))
  target = jnp.exp(theirs) * jnp.exp(stop(own)) ** beta
  return -(target / target.sum(-1, keepdims=True) * own).sum(-1)


BETAS = {0: 0.8, 25: 0.6, 100: 0.0, 200: 0.0}
DIRECTIONS = {
  'reverse': (veto(), lambda of, beta: reinforce(of, of.q - (1 - beta) * of.p)),
  'forward': (veto(forward=True, k=K), lambda of, beta: by_token(of.mask, forward(of, beta, K))),
}


@pytest.mark.parametrize('method, formula', DIRECTIONS.values(), ids=DIRECTIONS)
def test_it_is_the_published_formula_at_every_step(method, formula):
  for got, beta in zip(at_steps(method, BETAS), BETAS.values(), strict=True):
    same(got, paper(lambda of, beta=beta: formula(of, beta)))


def test_over_every_response_token_the_sampled_gradient_is_that_of_the_reverse_kl_to_the_target():
  """E_p[A ∇ log p] at one position, summed over its tokens, against -∇ KL(p ‖ Q) with Q a number."""
  logits, other, beta = jnp.asarray(STUDENT_LOGITS[0, 0]), TEACHER_LOGITS[0, 0], 0.6
  log_q = jax.nn.log_softmax(jnp.asarray(other))
  log_p = jax.nn.log_softmax(logits)
  scores = jax.jacobian(jax.nn.log_softmax)(logits)
  sampled = ((jnp.exp(log_p) * (log_q - (1 - beta) * log_p))[:, None] * scores).sum(0)
  target = jax.nn.log_softmax(log_q + beta * log_p)

  def kl(logits):
    own = jax.nn.log_softmax(logits)
    return (jnp.exp(own) * (own - target)).sum()

  np.testing.assert_allclose(sampled, -jax.grad(kl)(logits), atol=1e-14)


def test_without_beta_it_is_opd_and_forward_over_all_entries_it_is_gkd():
  np.testing.assert_allclose(ours(veto(beta=0.0))[1], ours(opd())[1], rtol=0, atol=1e-15)
  whole = ours(veto(beta=0.0, forward=True, k=V))[1]
  exact = ours(gkd(divergence=ForwardKL()))[1]
  np.testing.assert_allclose(whole, exact, rtol=0, atol=1e-14)


def test_a_constant_beta_claims_the_sharpened_teacher():
  assert veto(**VARIANTS['constant']).claim == Converges(optimum=Sharpened(beta=0.5))
  assert isinstance(veto().claim, Nothing) and isinstance(veto(beta=1.0).claim, Nothing)


@pytest.mark.parametrize('beta', [-0.1, 1.1, Piecewise(points=((0, 0.5), (9, 2.0)))])
def test_a_beta_without_meaning_is_refused(beta):
  with pytest.raises(ValueError, match='beta must stay between 0 and 1'):
    veto(beta=beta)
