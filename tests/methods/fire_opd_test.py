"""FiRe-OPD against its formula: which response is dropped, the two confidences, and the released variant."""

import jax
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
  same,
  stop,
  weigh,
)

from opd_jax.methods.fire_opd import VARIANTS, fire_opd
from opd_jax.methods.opd import opd

WRITTEN = np.flatnonzero(MASK.any(axis=1))


def least_liked(of, count):
  """The rows that the teacher finds least likely, token by token on average."""
  score = {row: float(np.asarray(of.q)[row, MASK[row]].mean()) for row in WRITTEN}
  return sorted(score, key=score.__getitem__)[:count]


def formula(*, dropped, teacher=1.0, student=1.0, alone=False):
  def loss(of):
    entropy = lambda log: np.asarray(stop(-(jnp.exp(log) * log).sum(-1)))
    h_teacher, h_student = entropy(of.Q), entropy(of.P)
    total, tokens, gone = [], 0, least_liked(of, dropped)
    for row in WRITTEN:
      here = np.flatnonzero(MASK[row])
      if row in gone:
        continue
      highest = lambda h, here=here, row=row: h[row, here].max() if alone else h[MASK].max()
      sure = 1 + teacher * (1 - h_teacher[row, here] / highest(h_teacher))
      unsure = 1 + student * h_student[row, here] / highest(h_student)
      weight = sure * unsure / (sure * unsure).mean()
      p, q = of.p[row, here], of.q[row, here]
      loss = -(jnp.exp(p - stop(p)) * weight * stop(q - p))
      total.append(loss.mean() if alone else loss.sum())
      tokens += 1 if alone else len(here)
    return sum(total) / tokens

  return loss


CASES = {
  'published': ({}, {'dropped': 1}),
  'no filter': (VARIANTS['no filter'], {'dropped': 0}),
  'filter only': (VARIANTS['filter only'], {'dropped': 2, 'teacher': 0.0, 'student': 0.0}),
  'unlike sides': (
    {'teacher': 0.5, 'student': 2.0, 'drop': 0.5},
    {'dropped': 3, 'teacher': 0.5, 'student': 2.0},
  ),
  'as released': (VARIANTS['as released'], {'dropped': 0, 'alone': True}),
}


@pytest.mark.parametrize('settings, papers', CASES.values(), ids=CASES)
def test_it_is_the_published_formula(settings, papers):
  same(ours(fire_opd(**settings)), paper(formula(**papers)))


def test_without_filter_and_confidences_it_is_opd():
  plain = ours(fire_opd(drop=0.0, teacher=0.0, student=0.0))
  np.testing.assert_allclose(plain[1], ours(opd())[1], rtol=0, atol=1e-14)


def test_the_random_filter_drops_as_many_rows_and_others_with_another_key():
  method = fire_opd(**VARIANTS['random filter'])
  evidence, _ = from_logits(STUDENT_LOGITS, TEACHER_LOGITS, REFERENCE_LOGITS, RESPONSE, method)
  found = set()
  for seed in range(8):
    (term,) = weigh(method)(evidence._replace(key=jax.random.key(seed)))
    kept = np.asarray(term.coefficient).any(axis=1)
    assert kept.sum() == len(WRITTEN) - 2 and not kept[~MASK.any(axis=1)].any()
    assert float(term.coefficient.sum()) == pytest.approx(1)
    found.add(tuple(kept.tolist()))
  assert len(found) > 2


@pytest.mark.parametrize('settings', [{}, *VARIANTS.values()], ids=['published', *VARIANTS])
def test_a_student_that_is_its_teacher_stays(settings):
  gradient = ours(fire_opd(**settings), student=TEACHER_LOGITS)[1]
  np.testing.assert_allclose(gradient, 0.0, rtol=0, atol=1e-15)
