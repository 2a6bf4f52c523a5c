"""TRB against its formula: only who writes differs from a policy gradient over the student's candidates."""

import jax
import jax.numpy as jnp
import numpy as np
from evidence_worlds import TEACHER_LOGITS, K, V, by_token, ours, paper, same, stop

from opd_jax.losses.divergences import ReverseKL
from opd_jax.methods.gkd import gkd
from opd_jax.methods.trb import VARIANTS, trb


def formula(of):
  log_p, log_q = stop(of.P), of.Q
  chosen = log_p >= jax.lax.top_k(log_p, K)[0][..., -1:]
  w = jnp.where(chosen, jnp.exp(log_p), 0.0)
  w = w / w.sum(-1, keepdims=True)
  return by_token(of.mask, -(w * (log_q - log_p) * jnp.exp(of.P - log_p)).sum(-1))


def test_it_is_the_published_formula():
  want = paper(formula)
  same(ours(trb(k=K)), want)
  same(ours(trb(k=K, **VARIANTS['no blending'])), want)


def test_with_all_tokens_as_candidates_it_is_the_reverse_kl():
  same(ours(trb(k=V)), ours(gkd(divergence=ReverseKL(), student_fraction=1.0)))


def test_a_student_that_is_its_teacher_stays():
  np.testing.assert_allclose(ours(trb(k=K), student=TEACHER_LOGITS)[1], 0.0, rtol=0, atol=1e-15)


def test_the_student_writes_every_row_beside_the_teacher_unless_told_not_to():
  assert trb().rollout.beside == 'teacher' and trb().rollout.needs_teacher
  assert trb(**VARIANTS['no blending']).rollout.beside is None
  assert not (trb().rollout.teacher or trb().rollout.data)
