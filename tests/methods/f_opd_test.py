"""f-OPD against its formula on text of other weights, its control, and its anchor by enumeration."""

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
  V,
  by_sequence,
  from_logits,
  ours,
  paper,
  same,
  stop,
  through_the_pass,
  weigh,
)

from opd_jax.methods.f_opd import VARIANTS, f_opd

# The writer's distribution: not far from the student's, and nearer in some rows than in others.
_MOVED = STUDENT_LOGITS + np.linspace(0.05, 0.6, len(MASK))[:, None, None] * REFERENCE_LOGITS
LOG_B = _MOVED - np.log(np.exp(_MOVED).sum(-1, keepdims=True))
WRITTEN = MASK.any(axis=1)


def drawn(response=RESPONSE):
  return np.take_along_axis(LOG_B, response[..., None], axis=-1)[..., 0]


def stale(method, response=RESPONSE, key=0, program=None):
  """The weighted term on text that the moved student wrote, and what its targets are."""
  logits = STUDENT_LOGITS, TEACHER_LOGITS, REFERENCE_LOGITS
  evidence, targets = from_logits(*logits, response, method)
  rollout = evidence.rollout._replace(behaviour_logp=drawn(response))
  evidence = evidence._replace(rollout=rollout, key=jax.random.key(key))
  return (program or weigh(method))(evidence), targets


def freshness(drift=1.0):
  """exp(-α √D) row by row, in numpy."""
  own = STUDENT_LOGITS - np.log(np.exp(STUDENT_LOGITS).sum(-1, keepdims=True))
  log = np.take_along_axis(own, RESPONSE[..., None], axis=-1)[..., 0] - drawn()
  kl = np.exp(log) * log - np.exp(log) + 1
  return np.array(
    [
      np.exp(-drift * np.sqrt(kl[row, MASK[row]].mean())) if WRITTEN[row] else 1.0
      for row in range(len(MASK))
    ]
  )


def formula(*, threshold=0.1, drift=1.0, anchor=0.1):
  weight = np.maximum(freshness(drift) - threshold, 0)[:, None]

  def loss(of):
    ratio, gap = jnp.exp(of.p - drawn()), stop(of.q - of.p)
    kept_back = anchor * ratio * stop(of.p - drawn())
    return by_sequence(of.mask, weight * (kept_back - ratio * gap))

  return loss


CASES = {
  'published': ({}, {}),
  'without anchor': (VARIANTS['without anchor'], {'anchor': 0.0}),
  'strict': ({'threshold': 0.8, 'drift': 2.0}, {'threshold': 0.8, 'drift': 2.0}),
}


@pytest.mark.parametrize('settings, papers', CASES.values(), ids=CASES)
def test_it_is_the_published_formula(settings, papers):
  terms, targets = stale(f_opd(**settings))
  same(through_the_pass(STUDENT_LOGITS, RESPONSE, targets, terms), paper(formula(**papers)))


def test_a_strict_threshold_drops_some_responses_and_keeps_others():
  weight = np.maximum(freshness(2.0) - 0.8, 0)[WRITTEN]
  assert (weight == 0).any() and (weight > 0).any()


def test_the_anchor_is_in_expectation_the_kl_to_the_writer():
  """By enumeration over the writer's tokens at every prefix; without a drift every response counts whole."""

  def expected(anchor):
    method = f_opd(threshold=0.0, drift=0.0, anchor=anchor)
    program, total = weigh(method), 0.0
    for token in range(V):
      response = np.full_like(RESPONSE, token)
      terms, targets = stale(method, response, program=program)
      gradient = through_the_pass(STUDENT_LOGITS, response, targets, terms)[1]
      total = total + np.exp(LOG_B[..., token, None]) * gradient
    return total

  kl = paper(lambda of: by_sequence(of.mask, (jnp.exp(of.P) * (of.P - LOG_B)).sum(-1)))[1]
  np.testing.assert_allclose(expected(0.5) - expected(0.0), 0.5 * kl, rtol=0, atol=1e-13)


def test_the_control_deals_the_same_weights_to_the_same_number_of_responses():
  method = f_opd(**VARIANTS['at random'])
  weight_of = lambda terms: np.asarray(terms[0].coefficient) * MASK.sum(1, keepdims=True)
  by_row = lambda terms: weight_of(terms).max(axis=1)
  own, dealt = by_row(stale(f_opd())[0]), [by_row(stale(method, key=key)[0]) for key in (1, 2)]
  for each in dealt:
    np.testing.assert_allclose(np.sort(each[WRITTEN]), np.sort(own[WRITTEN]), rtol=1e-12)
    assert not each[~WRITTEN].any() and (each != own).any()
  assert (dealt[0] != dealt[1]).any()


def test_fresh_it_is_opd_per_sequence():
  fresh = paper(lambda of: by_sequence(of.mask, -stop(of.q - of.p) * of.p))[1]
  np.testing.assert_allclose(ours(f_opd())[1], 0.9 * fresh, rtol=0, atol=1e-15)


@pytest.mark.parametrize('settings', [{'threshold': 1.0}, {'drift': -1.0}, {'anchor': -0.1}])
def test_numbers_without_meaning_are_refused(settings):
  with pytest.raises(ValueError, match='threshold must lie in'):
    f_opd(**settings)
