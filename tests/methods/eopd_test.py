"""EOPD against its formula: the gate by the teacher's entropy, the sum that is added, and how it may be closed."""

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
  K,
  at_ratio_one,
  by_token,
  from_logits,
  ours,
  paper,
  same,
  stop,
  top_kl,
  weigh,
)

from opd_jax.methods.eopd import VARIANTS, eopd
from opd_jax.methods.opd import opd

TAU = 1.6  # about half of the tokens of this world are above


def gate_of(of):
  return stop(-(jnp.exp(of.Q) * of.Q).sum(-1) > TAU)


def truncated(of):
  """Σ over the teacher's best K of q log(q / p), as it is."""
  log_q, ids = jax.lax.top_k(of.Q, K)
  return (jnp.exp(log_q) * (log_q - jnp.take_along_axis(of.P, ids, -1))).sum(-1)


CASES = {
  'published': ({}, True, truncated),
  'switch': (VARIANTS['switch'], False, truncated),
  'renormalised': (VARIANTS['renormalised'], True, top_kl),
}


@pytest.mark.parametrize('settings, added, guide', CASES.values(), ids=CASES)
def test_it_is_the_published_formula(settings, added, guide):
  def formula(of):
    gate = gate_of(of)
    assert 5 < int((gate & MASK).sum()) < MASK.sum() - 5
    sampled = -jnp.exp(of.p - stop(of.p)) * stop(of.q - of.p)
    first = sampled if added else jnp.where(gate, 0.0, sampled)
    return by_token(of.mask, first + 0.7 * jnp.where(gate, guide(of), 0.0))

  same(ours(eopd(threshold=TAU, k=K, weight=0.7, **settings)), paper(formula))


def test_where_the_teacher_is_always_sure_it_is_opd():
  plain = ours(eopd(threshold=9.0, k=K))
  same(plain, paper(lambda of: at_ratio_one(of, of.q - of.p)))
  np.testing.assert_allclose(plain[1], ours(opd())[1], rtol=0, atol=1e-15)


def test_the_random_gate_opens_for_as_many_tokens_of_every_response():
  settings = {'threshold': TAU, 'k': K}
  logits = STUDENT_LOGITS, TEACHER_LOGITS, REFERENCE_LOGITS
  opened = lambda method, evidence: np.asarray(weigh(method)(evidence)[1].coefficient) > 0
  evidence, _ = from_logits(*logits, RESPONSE, eopd(**settings))
  own = opened(eopd(**settings), evidence)
  method, found = eopd(**settings, **VARIANTS['random gate']), set()
  for seed in range(4):
    drawn = opened(method, evidence._replace(key=jax.random.key(seed)))
    np.testing.assert_array_equal(drawn.sum(axis=1), own.sum(axis=1))
    found.add(drawn.tobytes())
  assert len(found) > 1


@pytest.mark.parametrize('settings', [{'threshold': -0.1}, {'weight': -1.0}])
def test_numbers_without_meaning_are_refused(settings):
  with pytest.raises(ValueError, match='threshold and weight must not be negative'):
    eopd(**settings)
