"""Uni-OPD against its formula in loops: what a group lacks of its margin, and who is moved by it."""

import numpy as np
import pytest
from evidence_worlds import (
  GROUPS,
  MASK,
  REFERENCE_LOGITS,
  RESPONSE,
  REWARDS,
  STUDENT_LOGITS,
  TEACHER_LOGITS,
  by_sequence,
  from_logits,
  ours,
  paper,
  same,
  stop,
  weigh,
)
from jax import numpy as jnp

from opd_jax.methods.uni_opd import VARIANTS, uni_opd


def shifts(gap, margin, up, down, extremes):
  """What is added to every token of a row."""
  score = {row: gap[row, MASK[row]].mean() for row in np.flatnonzero(MASK.any(axis=1))}
  added = np.zeros((len(MASK), 1))
  for group in set(GROUPS):
    rows = [row for row in score if GROUPS[row] == group]
    right = [row for row in rows if REWARDS[row] == 1]
    wrong = [row for row in rows if REWARDS[row] == 0]
    if not right or not wrong:
      continue
    best, worst = (max, min) if extremes else (np.mean, np.mean)
    lacks = margin - (worst([score[row] for row in right]) - best([score[row] for row in wrong]))
    added[right], added[wrong] = up * max(lacks, 0), -down * max(lacks, 0)
  return added


def formula(margin=0.4, bound=10.0, up=0.5, down=0.5, extremes=False):
  def loss(of):
    gap = np.clip(np.asarray(stop(of.q - of.p)), -bound, bound)
    moved = gap if margin is None else gap + shifts(gap, margin, up, down, extremes)
    return by_sequence(of.mask, -jnp.exp(of.p - stop(of.p)) * moved)

  return loss


CASES = {
  'published': ({}, {}),
  'correct up': (VARIANTS['correct up'], {'up': 1.0, 'down': 0.0}),
  'extremes': (VARIANTS['extremes'], {'extremes': True}),
  'no margin': (VARIANTS['no margin'], {'margin': None}),
  'a wide margin': ({'margin': 3.0, 'bound': 1.0}, {'margin': 3.0, 'bound': 1.0}),
}


@pytest.mark.parametrize('settings, papers', CASES.values(), ids=CASES)
def test_it_is_the_published_formula(settings, papers):
  same(ours(uni_opd(**settings)), paper(formula(**papers)))


def test_the_margin_holds_afterwards_in_every_group_with_both_kinds():
  logits = STUDENT_LOGITS, TEACHER_LOGITS, REFERENCE_LOGITS
  evidence, _ = from_logits(*logits, RESPONSE, uni_opd(margin=3.0))
  (term,) = weigh(uni_opd(margin=3.0))(evidence)
  advantage = np.asarray(term.inputs['advantage'])
  mean = lambda rows: np.mean([advantage[row, MASK[row]].mean() for row in rows])
  assert mean([0]) - mean([1]) >= 3 - 1e-9 and mean([5]) - mean([6, 7]) >= 3 - 1e-9
  gap = np.asarray(evidence.teacher.logp - evidence.student.logp)
  # Row 3 is wrong and the right row of its group is empty; nobody verified row 4.
  alone = MASK & np.isin(np.arange(len(MASK)), (3, 4))[:, None]
  np.testing.assert_allclose(advantage[alone], gap[alone], rtol=1e-12)


@pytest.mark.parametrize('settings', [{'bound': 0.0}, {'up': -1.0}])
def test_numbers_without_meaning_are_refused(settings):
  with pytest.raises(ValueError, match='bound must be above 0'):
    uni_opd(**settings)
