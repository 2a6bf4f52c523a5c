"""vOPD against its formula; its baseline changes no expectation and takes away what does not depend on the token."""

import jax
import jax.numpy as jnp
import numpy as np
from evidence_worlds import (
  MASK,
  RESPONSE,
  STUDENT_LOGITS,
  TEACHER_LOGITS,
  K,
  V,
  ours,
  paper,
  reinforce,
  same,
)

from opd_jax.losses.rest_rules import Tail
from opd_jax.losses.supports import StudentTopK, Support
from opd_jax.methods.opd import opd
from opd_jax.methods.vopd import vopd

COARSE = Support(entries=StudentTopK(K), rest=Tail())


def reverse_kl(log_p, log_q):
  return (jnp.exp(log_p) * (log_p - log_q)).sum(-1)


def on_the_students_best(of):
  """Reverse KL on the student's top K and one entry for the rest."""
  best, ids = jax.lax.top_k(of.P, K)
  picked = jnp.take_along_axis(of.Q, ids, -1)
  rest = lambda log: jnp.log1p(-jnp.exp(log).sum(-1, keepdims=True))
  log_p, log_q = (jnp.concatenate([log, rest(log)], axis=-1) for log in (best, picked))
  return reverse_kl(log_p, log_q)


def test_it_is_the_published_formula():
  same(ours(vopd()), paper(lambda of: reinforce(of, of.q - of.p + reverse_kl(of.P, of.Q))))


def test_on_the_students_top_k_it_is_the_papers_estimate():
  want = paper(lambda of: reinforce(of, of.q - of.p + on_the_students_best(of)))
  same(ours(vopd(support=COARSE)), want)


def expected(method):
  """Mean and second moment of the gradient, by enumeration of the token at every position."""
  probs = np.asarray(jax.nn.softmax(STUDENT_LOGITS))
  mean, square = np.zeros_like(STUDENT_LOGITS), 0.0
  for token in range(V):
    gradient = np.asarray(ours(method, response=np.full_like(RESPONSE, token))[1])
    mean += probs[..., token, None] * gradient
    square += (probs[..., token] * np.square(gradient).sum(-1)).sum()
  return mean, square


def test_the_baseline_changes_no_expectation_and_lowers_the_variance():
  (plain, much), (ours_mean, less) = expected(opd()), expected(vopd())
  np.testing.assert_allclose(ours_mean, plain, rtol=0, atol=1e-12)
  np.testing.assert_allclose(expected(vopd(support=COARSE))[0], plain, rtol=0, atol=1e-12)
  exact = paper(lambda of: jnp.where(of.mask, reverse_kl(of.P, of.Q), 0.0).sum() / MASK.sum())[1]
  np.testing.assert_allclose(plain, exact, rtol=0, atol=1e-12)
  assert less < much


def test_a_student_that_is_its_teacher_stays():
  gradient = ours(vopd(support=COARSE), student=TEACHER_LOGITS)[1]
  np.testing.assert_allclose(gradient, 0.0, rtol=0, atol=1e-14)
