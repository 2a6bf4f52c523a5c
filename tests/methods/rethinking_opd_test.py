"""Rethinking OPD against its formula: whose candidates, whose weights, and the ends where it is another method."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from evidence_worlds import TEACHER_LOGITS, K, V, by_token, ours, paper, same, stop

from opd_jax.losses.divergences import ReverseKL
from opd_jax.methods.gkd import gkd
from opd_jax.methods.rethinking_opd import VARIANTS, rethinking_opd


def formula(of, candidates, weight):
  best = lambda log: log >= jax.lax.top_k(log, K)[0][..., -1:]
  student, teacher = best(stop(of.P)), best(of.Q)
  kept = {
    'student': student,
    'teacher': teacher,
    'both': student & teacher,
    'either': student | teacher,
  }[candidates]
  side = {'student': stop(of.P), 'teacher': of.Q}.get(weight, jnp.zeros(of.P.shape))
  w = jnp.where(kept, jnp.exp(side), 0.0)
  if weight != 'none':
    w = w / jnp.maximum(w.sum(-1, keepdims=True), 1e-300)
  ratio = jnp.exp(of.P - stop(of.P))
  return by_token(of.mask, -(w * stop(of.Q - of.P) * ratio).sum(-1))


CASES = {
  'published': ({}, 'student', 'student'),
  'teacher weights': (VARIANTS['teacher weights'], 'student', 'teacher'),
  'no weights': (VARIANTS['no weights'], 'student', 'none'),
  'only teacher': (VARIANTS['only teacher'], 'teacher', 'student'),
  'intersection': (VARIANTS['intersection'], 'both', 'student'),
  'union': (VARIANTS['union'], 'either', 'student'),
}


@pytest.mark.parametrize('settings, candidates, weight', CASES.values(), ids=CASES)
def test_it_is_the_published_formula(settings, candidates, weight):
  want = paper(lambda of: formula(of, candidates, weight))
  same(ours(rethinking_opd(k=K, **settings)), want)


def test_with_all_tokens_as_candidates_it_is_the_reverse_kl():
  whole = ours(gkd(divergence=ReverseKL(), student_fraction=1.0))
  same(ours(rethinking_opd(k=V)), whole)


@pytest.mark.parametrize('name', VARIANTS)
def test_a_student_that_is_its_teacher_stays(name):
  gradient = ours(rethinking_opd(k=K, **VARIANTS[name]), student=TEACHER_LOGITS)[1]
  np.testing.assert_allclose(gradient, 0.0, rtol=0, atol=1e-15)
