"""GNDPO against its formula, and what it does not care about: shift and scale of the gap."""

import jax.numpy as jnp
import numpy as np
import pytest
from evidence_worlds import (
  MASK,
  REFERENCE_LOGITS,
  RESPONSE,
  STUDENT_LOGITS,
  TEACHER_LOGITS,
  from_logits,
  ours,
  paper,
  reinforce,
  same,
  stop,
  weigh,
)

from opd_jax.methods.gndpo import VARIANTS, gndpo

CASES = {
  'published': ({}, np.inf),
  'clamped': (VARIANTS['clamped'], 5.0),
  'clamped to 1': ({'bound': 1.0}, 1.0),
}


@pytest.mark.parametrize('settings, bound', CASES.values(), ids=CASES)
def test_it_is_the_published_formula(settings, bound):
  def advantage(of):
    gap = np.clip(np.asarray(stop(of.q - of.p)), -bound, bound)
    return (gap - gap[MASK].mean()) / gap[MASK].std()

  same(ours(gndpo(**settings)), paper(lambda of: reinforce(of, advantage(of))))


def test_neither_a_shift_nor_a_scale_of_the_gap_matters():
  logits = STUDENT_LOGITS, TEACHER_LOGITS, REFERENCE_LOGITS
  evidence, _ = from_logits(*logits, RESPONSE, gndpo())
  gap = evidence.teacher.logp - evidence.student.logp
  scores = evidence.scores['teacher']
  moved = scores._replace(logp=evidence.student.logp + 3 * gap - 1)
  before, after = (
    weigh(gndpo())(evidence._replace(scores={**evidence.scores, 'teacher': each}))[0].coefficient
    for each in (scores, moved)
  )
  np.testing.assert_allclose(after, before, rtol=0, atol=1e-14)
  assert float(jnp.abs(before.sum())) < 1e-14


def test_a_student_that_is_its_teacher_stays_also_where_rounding_is_all_there_is():
  np.testing.assert_allclose(ours(gndpo(), student=TEACHER_LOGITS)[1], 0.0, rtol=0, atol=1e-15)
  near = TEACHER_LOGITS + 1e-9 * STUDENT_LOGITS
  assert np.abs(ours(gndpo(), student=near)[1]).max() < 1e-4
