"""Rock tokens against the formula: which positions are left alone, and a normaliser that shrinks with them."""

import jax
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
  weigh,
)
from jax import numpy as jnp

from opd_jax.methods.rock import rock

IDS = (2, 5, 7)


def reverse(of):
  return (jnp.exp(of.P) * (of.P - of.Q)).sum(-1)


def weights_of(weight, following):
  w = np.where(MASK, 1.0, 0.0)
  for row, at in np.argwhere(MASK):
    read = RESPONSE[row, at - 1] if following and at > 0 else RESPONSE[row, at]
    if read in IDS and not (following and at == 0):
      w[row, at] = weight
  return w


@pytest.mark.parametrize('weight', [0.0, 0.3, 2.0])
@pytest.mark.parametrize('following', [True, False])
def test_it_is_the_published_formula(following, weight):
  w = weights_of(weight, following)
  assert 3 <= (w[MASK] == weight).sum() < MASK.sum()
  formula = lambda of: (w * reverse(of)).sum() / max(w.sum(), 1.0)
  same(ours(rock(ids=IDS, weight=weight, following=following)), paper(formula))


def test_without_rocks_it_is_the_reverse_kl_and_of_rocks_alone_nothing_is_left():
  whole = paper(lambda of: by_token(of.mask, reverse(of)))
  same(ours(rock()), whole)
  same(ours(rock(ids=IDS, weight=1.0)), whole)
  assert not np.asarray(ours(rock(ids=range(11), following=False))[1]).any()


def test_the_random_control_leaves_as_many_tokens_of_every_response_alone():
  method, found = rock(ids=IDS, at_random=True), set()
  logits = STUDENT_LOGITS, TEACHER_LOGITS, REFERENCE_LOGITS
  evidence, _ = from_logits(*logits, RESPONSE, method)
  program, own = weigh(method), (weights_of(0.0, True) > 0).sum(axis=1)
  for seed in range(4):
    kept = np.asarray(program(evidence._replace(key=jax.random.key(seed)))[0].coefficient) > 0
    np.testing.assert_array_equal(kept.sum(axis=1), own)
    found.add(kept.tobytes())
  assert len(found) > 1


@pytest.mark.parametrize('settings', [{'weight': -1.0}, {'ids': (-1,)}])
def test_numbers_without_meaning_are_refused(settings):
  with pytest.raises(ValueError, match='weight and ids must not be negative'):
    rock(**settings)
