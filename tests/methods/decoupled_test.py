"""Decoupled distillation against its formula: both KLs, who writes, and the curriculum over steps."""

import jax.numpy as jnp
import numpy as np
import pytest
from evidence_worlds import (
  MASK,
  REFERENCE_LOGITS,
  RESPONSE,
  STUDENT_LOGITS,
  TEACHER_LOGITS,
  by_token,
  from_logits,
  ours,
  paper,
  same,
  through_the_pass,
  weigh,
)

from opd_jax.claims import Converges, Nothing, Unbiased
from opd_jax.losses.divergences import ForwardKL, ReverseKL
from opd_jax.method import as_asked
from opd_jax.methods.decoupled import VARIANTS, decoupled
from opd_jax.methods.gkd import gkd


def kl(log_a, log_b):
  return (jnp.exp(log_a) * (log_a - log_b)).sum(-1)


def formula(reverse, mask=MASK):
  return lambda of: by_token(mask, reverse * kl(of.P, of.Q) + (1 - reverse) * kl(of.Q, of.P))


CASES = {
  'published': ({}, 0.25),
  'balanced': ({'reverse': 0.5}, 0.5),
  'reverse': (VARIANTS['student, reverse'], 1.0),
  'teacher forward': (VARIANTS['teacher, forward'], 0.0),
}


@pytest.mark.parametrize('settings, reverse', CASES.values(), ids=CASES)
def test_it_is_the_published_formula(settings, reverse):
  same(ours(decoupled(**settings)), paper(formula(reverse)))


def test_an_end_is_gkd():
  for reverse, divergence in ((1.0, ReverseKL()), (0.0, ForwardKL())):
    want = ours(gkd(divergence=divergence))[1]
    np.testing.assert_allclose(ours(decoupled(reverse=reverse))[1], want, rtol=0, atol=1e-15)


LENGTHS = (1, 2, 4, 9)


def first(length):
  found = np.zeros(MASK.shape, bool)
  for row, counts in enumerate(MASK):
    found[row, np.flatnonzero(counts)[:length]] = True
  return found


def curriculum(**settings):
  method = decoupled(reverse=1.0, lengths=LENGTHS, **settings)
  logits = STUDENT_LOGITS, TEACHER_LOGITS, REFERENCE_LOGITS
  return method, *from_logits(*logits, RESPONSE, method)


def test_the_curriculum_learns_the_beginnings_of_responses():
  method, evidence, targets = curriculum()
  program = weigh(method)
  for level, length in enumerate(LENGTHS):
    terms = program(evidence._replace(memory=jnp.int32(level)))
    got = through_the_pass(STUDENT_LOGITS, RESPONSE, targets, terms)
    same(got, paper(formula(1.0, first(length))))


def test_it_grows_when_it_looks_while_the_entropy_of_what_is_learnt_is_high_enough():
  """The threshold lies between the entropies of one and of two tokens: from there on it stands, or goes to the end."""
  p = np.exp(STUDENT_LOGITS - np.log(np.exp(STUDENT_LOGITS).sum(-1, keepdims=True)))
  entropy = -(p * np.log(p)).sum(-1)
  means = [entropy[first(length)].mean() for length in LENGTHS]
  for bound in (0.0, np.mean(means[:2]), np.mean(means[1:3]), 9.0):
    method, evidence, _ = curriculum(min_entropy=float(bound), every=2)
    memory, level = jnp.int32(0), 0
    for step in range(10):
      if step % 2 and means[level] >= bound:
        level = min(level + 1, len(LENGTHS) - 1)
      seen = evidence._replace(memory=memory, step=jnp.int32(step))
      memory = method.remember(as_asked(seen, method.needs))
      assert int(memory) == level and memory.dtype == np.int32


def test_who_writes_and_what_is_claimed():
  assert decoupled().rollout.student == 1.0
  assert decoupled(**VARIANTS['teacher, reverse']).rollout.teacher == 1.0
  assert decoupled().claim == Converges()
  assert decoupled(reverse=0.0).claim == Unbiased(divergence=ForwardKL())
  assert isinstance(decoupled(**VARIANTS['curriculum']).claim, Nothing)
  assert decoupled().memory is None and decoupled().remember is None


@pytest.mark.parametrize(
  'settings', [{'reverse': 1.1}, {'lengths': (4, 2)}, {'lengths': (0, 2)}, {'every': 0}]
)
def test_settings_without_meaning_are_refused(settings):
  with pytest.raises(ValueError, match='decoupled: reverse must lie'):
    decoupled(**settings)
