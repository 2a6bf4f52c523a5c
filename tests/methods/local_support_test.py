"""Local support matching against its formula, and its options: a bound, ids without a loss, and few tokens."""

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
  by_token,
  from_logits,
  ours,
  paper,
  same,
  weigh,
)

from opd_jax.methods.local_support import VARIANTS, local_support

COUNTS = -(-MASK.sum(axis=1) // 5)  # a fifth of a response, rounded up


def entropic():
  """The fifth of each response where the student's entropy is highest, by sorting it."""
  log = STUDENT_LOGITS - np.log(np.exp(STUDENT_LOGITS).sum(-1, keepdims=True))
  entropy = np.where(MASK, -(np.exp(log) * log).sum(-1), -np.inf)
  chosen = np.zeros(MASK.shape, bool)
  for row, count in enumerate(COUNTS):
    chosen[row, np.argsort(-entropy[row])[:count]] = True
  return chosen


def formula(mask=MASK, bound=np.inf):
  def loss(of):
    best, ids = jax.lax.top_k(of.Q, K)
    p, q = (jax.nn.softmax(x) for x in (jnp.take_along_axis(of.P, ids, -1), best))
    return by_token(mask, (p * jnp.clip(jnp.log(p / q), -bound, bound)).sum(-1))

  return loss


CASES = {
  'published': ({}, {}),
  'bounded': (VARIANTS['bounded'], {'bound': 5.0}),
  'tightly bounded': ({'bound': 0.7}, {'bound': 0.7}),
  'entropy': (VARIANTS['entropy'], {'mask': entropic()}),
  'special tokens': ({'ignored': (2, 5)}, {'mask': MASK & ~np.isin(RESPONSE, (2, 5))}),
}


@pytest.mark.parametrize('settings, papers', CASES.values(), ids=CASES)
def test_it_is_the_published_formula(settings, papers):
  same(ours(local_support(k=K, **settings)), paper(formula(**papers)))


def test_the_random_control_spends_the_same_budget_elsewhere():
  method = local_support(k=K, **VARIANTS['random'])
  logits = STUDENT_LOGITS, TEACHER_LOGITS, REFERENCE_LOGITS
  evidence, _ = from_logits(*logits, RESPONSE, method)
  drawn = [
    np.asarray(weigh(method)(evidence._replace(key=jax.random.key(seed)))[0].coefficient)
    for seed in range(2)
  ]
  for coefficient in drawn:
    np.testing.assert_array_equal((coefficient > 0).sum(axis=1), COUNTS)
    np.testing.assert_allclose(coefficient[coefficient > 0], 1 / COUNTS.sum())
  assert (drawn[0] != drawn[1]).any() and method.needs.of_student.entropy is False


def test_a_choice_that_is_not_known_is_refused():
  with pytest.raises(ValueError, match="'entropy' or 'random', got 'luck'"):
    local_support(by='luck')
