"""OPRD on the last layer against its formula: which tokens count, the sum with OPD, and its control."""

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
  by_token,
  from_logits,
  ours,
  same,
  weigh,
)

from opd_jax.methods.oprd import VARIANTS, oprd


def last(count):
  chosen = np.zeros(MASK.shape, bool)
  for row, counts in enumerate(MASK):
    chosen[row, np.flatnonzero(counts)[-count:]] = True
  return chosen


def formula(*, count=2000, mu=1.0, beside=False):
  """The states are the logits, under a head that is the identity."""
  log_q = jax.nn.log_softmax(TEACHER_LOGITS)

  def loss(states):
    distance = jnp.square(states - TEACHER_LOGITS).sum(-1) / states.shape[-1]
    found = mu * by_token(last(count), distance)
    if not beside:
      return found
    pick = lambda log: jnp.take_along_axis(log, RESPONSE[..., None], axis=-1)[..., 0]
    p = pick(jax.nn.log_softmax(states))
    return found - by_token(MASK, jax.lax.stop_gradient(pick(log_q) - p) * p)

  return jax.value_and_grad(loss)(jnp.asarray(STUDENT_LOGITS))


CASES = {
  'published': ({}, {}),
  'the last two': ({'count': 2}, {'count': 2}),
  'beside opd': ({'count': 3, **VARIANTS['beside opd']}, {'count': 3, 'mu': 10.0, 'beside': True}),
}


@pytest.mark.parametrize('settings, papers', CASES.values(), ids=CASES)
def test_it_is_the_published_formula(settings, papers):
  same(ours(oprd(**settings)), formula(**papers))


def test_the_control_draws_as_many_tokens_of_every_response():
  method = oprd(count=2, **VARIANTS['random tokens'])
  evidence, _ = from_logits(STUDENT_LOGITS, TEACHER_LOGITS, REFERENCE_LOGITS, RESPONSE, method)
  drawn = [
    np.asarray(weigh(method)(evidence._replace(key=jax.random.key(seed)))[0].coefficient)
    for seed in range(2)
  ]
  for coefficient in drawn:
    np.testing.assert_array_equal((coefficient > 0).sum(1), np.minimum(MASK.sum(1), 2))
    np.testing.assert_allclose(coefficient.sum(), 1.0)
  assert (drawn[0] != drawn[1]).any()


def test_a_student_that_is_its_teacher_stays():
  np.testing.assert_array_equal(ours(oprd(), student=TEACHER_LOGITS)[1], 0.0)


@pytest.mark.parametrize(
  'settings, words', [({'mu': 0.0}, 'mu must be above 0'), ({'count': 0}, 'at least one token')]
)
def test_numbers_without_meaning_are_refused(settings, words):
  with pytest.raises(ValueError, match=words):
    ours(oprd(**settings))
