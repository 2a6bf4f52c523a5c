"""Rethinking OPD against its formula: whose candidates, whose weights, and the ends where it is another method."""

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
  same,
  stop,
  through_the_pass,
  weigh,
)

from opd_jax.losses.divergences import ReverseKL
from opd_jax.losses.terms import ClippedCandidates, ClippedRatio
from opd_jax.methods.gkd import gkd
from opd_jax.methods.rethinking_opd import VARIANTS, rethinking_opd


def advantages(P, Q, candidates, weight):
  """Of every token, by a student P; zero where it is no candidate."""
  best = lambda log: log >= jax.lax.top_k(log, K)[0][..., -1:]
  student, teacher = best(P), best(Q)
  kept = {
    'student': student,
    'teacher': teacher,
    'both': student & teacher,
    'either': student | teacher,
  }[candidates]
  side = {'student': P, 'teacher': Q}.get(weight, jnp.zeros(P.shape))
  w = jnp.where(kept, jnp.exp(side), 0.0)
  if weight != 'none':
    w = w / jnp.maximum(w.sum(-1, keepdims=True), 1e-300)
  return w * (Q - P)


def formula(of, candidates, weight):
  ratio = jnp.exp(of.P - stop(of.P))
  return by_token(of.mask, -(stop(advantages(of.P, of.Q, candidates, weight)) * ratio).sum(-1))


def clipped(of, old, candidates, weight):
  """PPO's clip of 0.2 for each candidate, and at most three times its cost where it is to fall."""
  A, ratio = advantages(old, of.Q, candidates, weight), jnp.exp(of.P - old)
  loss = jnp.maximum(-ratio * A, -jnp.clip(ratio, 0.8, 1.2) * A)
  return by_token(of.mask, jnp.where(A < 0, jnp.minimum(loss, -3 * A), loss).sum(-1))


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


@pytest.mark.parametrize('weight', ['student', 'teacher', 'none'])
@pytest.mark.parametrize('candidates', ['student', 'both'])
def test_with_a_clip_every_candidate_is_bounded_by_its_own_ratio(candidates, weight):
  """In the first update it is the method without one; in later ones it is as released."""
  method = rethinking_opd(k=K, of=candidates, weight=weight, clip=ClippedRatio(dual=3.0))
  evidence, targets = from_logits(
    STUDENT_LOGITS, TEACHER_LOGITS, REFERENCE_LOGITS, RESPONSE, method
  )
  terms = weigh(method)(evidence)
  same(
    through_the_pass(STUDENT_LOGITS, RESPONSE, targets, terms),
    paper(lambda of: formula(of, candidates, weight)),
  )
  later = STUDENT_LOGITS + 1.2 * np.random.RandomState(1).randn(*STUDENT_LOGITS.shape)
  old = jax.nn.log_softmax(jnp.asarray(STUDENT_LOGITS))
  got = through_the_pass(later, RESPONSE, targets, terms)
  same(got, paper(lambda of: clipped(of, old, candidates, weight), student=later))
  free = terms[0]._replace(term=ClippedCandidates(clip=ClippedRatio(low=1e9, high=1e9)))
  assert np.abs(through_the_pass(later, RESPONSE, targets, (free,))[1] - got[1]).max() > 1e-3


def test_a_clip_of_candidates_that_the_student_was_not_scored_at_is_refused():
  with pytest.raises(ValueError, match=r"of must be 'student' or 'both' with a clip, got 'either'"):
    rethinking_opd(of='either', clip=ClippedRatio())


def test_with_all_tokens_as_candidates_it_is_the_reverse_kl():
  whole = ours(gkd(divergence=ReverseKL(), student_fraction=1.0))
  same(ours(rethinking_opd(k=V)), whole)


@pytest.mark.parametrize('name', VARIANTS)
def test_a_student_that_is_its_teacher_stays(name):
  gradient = ours(rethinking_opd(k=K, **VARIANTS[name]), student=TEACHER_LOGITS)[1]
  np.testing.assert_allclose(gradient, 0.0, rtol=0, atol=1e-15)
