"""SCOPE against its formula: who is in which path, the weights within a group, and both signs."""

import jax.numpy as jnp
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
  from_logits,
  ours,
  paper,
  same,
  stop,
  weigh,
)

from opd_jax.method import Evidence
from opd_jax.methods.opd import opd
from opd_jax.methods.scope import VARIANTS, scope

WRITTEN = MASK.any(axis=1)


def shares(rows, perplexity, power):
  """PPL^power over its mean among the rows of the same group."""
  found = {}
  for row in rows:
    mates = [mate for mate in rows if GROUPS[mate] == GROUPS[row]]
    found[row] = perplexity[row] ** power / np.mean([perplexity[mate] ** power for mate in mates])
  return found


def formula(*, temperature=1.0, own=1.0):
  def loss(of):
    written = [int(row) for row in np.flatnonzero(WRITTEN)]
    mean = lambda logp, row: float(np.asarray(stop(logp))[row, MASK[row]].mean())
    perplexity = lambda logp: {row: np.exp(-mean(logp, row)) for row in written}
    right = [row for row in written if REWARDS[row] == 1]
    wrong = [row for row in written if REWARDS[row] == 0]
    student = shares(right, perplexity(of.p), own / temperature)
    teacher = shares(wrong, perplexity(of.q), -1 / temperature)
    exploited = -sum(student[row] * of.p[row, MASK[row]].sum() for row in right)
    ratio, gap = jnp.exp(of.p - stop(of.p)), stop(of.q - of.p)
    corrected = -sum(teacher[row] * (ratio * gap)[row, MASK[row]].sum() for row in wrong)
    return exploited / MASK[right].sum() + corrected / MASK.sum()

  return loss


CASES = {
  'published': ({}, {}),
  'temperature 2': ({'temperature': 2.0}, {'temperature': 2.0}),
  'as released': (VARIANTS['as released'], {'own': -1.0}),
  'even': (VARIANTS['even'], {'temperature': float('inf')}),
}


@pytest.mark.parametrize('settings, papers', CASES.values(), ids=CASES)
def test_it_is_the_published_formula(settings, papers):
  same(ours(scope(**settings)), paper(formula(**papers)))


def evidence_of(method, reward) -> Evidence:
  logits = STUDENT_LOGITS, TEACHER_LOGITS, REFERENCE_LOGITS
  evidence = from_logits(*logits, RESPONSE, method)[0]
  return evidence._replace(rollout=evidence.rollout._replace(reward=jnp.asarray(reward)))


def test_where_all_are_wrong_and_count_alike_it_is_opd():
  method = scope(temperature=float('inf'))
  exploited, corrected = weigh(method)(evidence_of(method, np.zeros(len(GROUPS))))
  (plain,) = weigh(opd())(evidence_of(opd(), np.zeros(len(GROUPS))))
  assert not np.asarray(exploited.coefficient).any()
  advantage = corrected.coefficient * corrected.inputs['advantage']
  np.testing.assert_allclose(advantage, plain.coefficient, rtol=0, atol=1e-15)


def test_what_nobody_verified_is_in_neither_path():
  terms = weigh(scope())(evidence_of(scope(), np.full(len(GROUPS), np.nan)))
  assert all(not np.asarray(term.coefficient).any() for term in terms)


def test_a_correct_response_counts_more_where_it_surprises():
  """Group 2 with two right rows: the one of higher perplexity has the larger share, and the smaller as released."""
  reward = np.array([0, 0, 0, 0, 0, 1.0, 1.0, 0])
  logp = lambda log: log - np.log(np.exp(log).sum(-1, keepdims=True))
  written = np.take_along_axis(logp(STUDENT_LOGITS), RESPONSE[..., None], -1)[..., 0]
  mean = [written[row, MASK[row]].mean() for row in (5, 6)]
  surprising, other = (5, 6) if mean[0] < mean[1] else (6, 5)
  for settings, larger, smaller in (
    ({}, surprising, other),
    (VARIANTS['as released'], other, surprising),
  ):
    exploited = weigh(scope(**settings))(evidence_of(scope(), reward))[0].coefficient
    assert np.asarray(exploited)[larger].max() > np.asarray(exploited)[smaller].max() > 0


def test_a_correct_response_is_reinforced_also_where_the_teacher_has_no_opinion():
  evidence = evidence_of(scope(), np.array(REWARDS))
  teacher = evidence.scores['teacher']
  scores = {**evidence.scores, 'teacher': teacher._replace(known=jnp.zeros_like(teacher.known))}
  blind = Evidence.of(evidence.rollout, scores, scope().needs, step=evidence.step, key=evidence.key)
  before, after = (weigh(scope())(each) for each in (evidence, blind))
  np.testing.assert_array_equal(after[0].coefficient, before[0].coefficient)
  assert np.asarray(before[0].coefficient).any() and not np.asarray(after[1].coefficient).any()
