"""REOPOLD against its formula: the floor, both stages, and the control."""

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
  at_ratio_one,
  from_logits,
  ours,
  paper,
  same,
  through_the_pass,
  weigh,
)

from opd_jax.claims import Converges
from opd_jax.methods.opd import opd
from opd_jax.methods.reopold import VARIANTS, reopold

FLOOR = np.log(0.17 / 0.83)  # -1.586


def unsure(fraction):
  """The part of every response where the student's entropy is highest, rounded up."""
  p = np.exp(STUDENT_LOGITS - np.log(np.exp(STUDENT_LOGITS).sum(-1, keepdims=True)))
  entropy, found = -(p * np.log(p)).sum(-1), np.zeros(MASK.shape, bool)
  for row, counts in enumerate(MASK):
    here = sorted(np.flatnonzero(counts), key=lambda column, row=row: -entropy[row, column])
    found[row, here[: int(np.ceil(fraction * len(here) - 1e-9))]] = True
  return found


def formula(kept, floor=FLOOR):
  return lambda of: at_ratio_one(of._replace(mask=kept), jnp.maximum(of.q - of.p, floor))


def at_step(method, step, key=0):
  logits = STUDENT_LOGITS, TEACHER_LOGITS, REFERENCE_LOGITS
  evidence, targets = from_logits(*logits, RESPONSE, method)
  evidence = evidence._replace(step=jnp.int32(step), key=jax.random.key(key))
  (term,) = weigh(method)(evidence)
  return through_the_pass(STUDENT_LOGITS, RESPONSE, targets, (term,)), np.asarray(term.coefficient)


@pytest.mark.parametrize(
  'step, kept', [(0, MASK), (99, MASK), (100, unsure(0.2)), (500, unsure(0.2))]
)
def test_it_is_the_published_formula_in_both_stages(step, kept):
  assert unsure(0.2).sum() == 9 < MASK.sum()
  same(at_step(reopold(), step)[0], paper(formula(kept)))


def test_the_floor_is_that_of_the_mixture():
  """λ = 0.3: -0.847 nats, which several tokens of the batch reach."""
  floor = np.log(0.3 / 0.7)
  same(ours(reopold(mixing=0.3)), paper(formula(MASK, floor)))
  assert not np.allclose(ours(reopold(mixing=0.3))[1], ours(reopold())[1])


def test_a_low_floor_on_every_token_is_opd():
  got = ours(reopold(mixing=1e-9, **VARIANTS['floor only']))
  np.testing.assert_allclose(got[1], ours(opd())[1], rtol=0, atol=1e-15)


def test_the_control_keeps_as_many_tokens_of_every_response():
  method = reopold(**VARIANTS['random selection'])
  counts = [(at_step(method, 0, key)[1] > 0) for key in range(4)]
  assert all((each.sum(1) == unsure(0.2).sum(1)).all() for each in counts)
  assert len({each.tobytes() for each in counts}) == 4 and not any(
    each[~MASK].any() for each in counts
  )
  assert method.claim == Converges() != reopold().claim


@pytest.mark.parametrize('settings', [{'mixing': 0.5}, {'mixing': 0.0}, {'fraction': 0.0}])
def test_settings_without_meaning_are_refused(settings):
  with pytest.raises(ValueError, match='reopold: mixing must lie'):
    reopold(**settings)
