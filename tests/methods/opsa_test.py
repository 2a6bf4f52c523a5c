"""OPSA against its formula: the least likely of the batch, an advantage by entropy, and no teacher."""

import jax
import numpy as np
import pytest
from evidence_worlds import (
  MASK,
  REFERENCE_LOGITS,
  RESPONSE,
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

from opd_jax.method_reads import judges_read
from opd_jax.methods.opsa import VARIANTS, opsa

PLACES = [tuple(place) for place in np.argwhere(MASK).tolist()]


def formula(fraction=0.2, fixed=None):
  def loss(of):
    p, P = np.asarray(stop(of.p)), np.asarray(stop(of.P))
    chosen = sorted(PLACES, key=lambda at: p[at])[: int(np.ceil(fraction * len(PLACES)))]
    entropy = {at: -(np.exp(P[at]) * P[at]).sum() for at in chosen}
    low, high = min(entropy.values()), max(entropy.values())
    advantage, kept = np.zeros(MASK.shape), np.zeros(MASK.shape, bool)
    for at in chosen:
      kept[at] = True
      advantage[at] = fixed or -0.5 - (entropy[at] - low) / (2 * (high - low))
    return by_sequence(kept, -advantage * of.p)

  return loss


CASES = {
  'published': ({}, {}),
  'half': ({'fraction': 0.5}, {'fraction': 0.5}),
  'fixed negative': (VARIANTS['fixed negative'], {'fixed': -0.5}),
  'fixed positive': (VARIANTS['fixed positive'], {'fixed': 0.2}),
}


@pytest.mark.parametrize('settings, papers', CASES.values(), ids=CASES)
def test_it_is_the_published_formula(settings, papers):
  same(ours(opsa(**settings)), paper(formula(**papers)))


def weighed(method, seeds=(0,), student=STUDENT_LOGITS):
  """Coefficients for each of some keys."""
  logits = student, TEACHER_LOGITS, REFERENCE_LOGITS
  evidence, _ = from_logits(*logits, RESPONSE, method)
  program, keys = weigh(method), map(jax.random.key, seeds)
  return [np.asarray(program(evidence._replace(key=key))[0].coefficient) for key in keys]


def test_where_all_chosen_tokens_are_equally_sure_each_has_the_larger_penalty():
  even = np.arange(11.0) * np.ones_like(STUDENT_LOGITS)
  (found,) = weighed(opsa(fraction=1.0), student=even)
  rows = MASK.any(axis=1).sum()
  np.testing.assert_allclose(found[0, 0], -1 / (MASK[0].sum() * rows), rtol=1e-12)
  np.testing.assert_allclose(found.sum(), -1.0, rtol=1e-12)


@pytest.mark.parametrize('variant', ['random', 'random and fixed'])
def test_the_random_control_spends_the_same_budget_elsewhere(variant):
  method, budget = opsa(**VARIANTS[variant]), int(np.ceil(0.2 * MASK.sum()))
  chosen = [each != 0 for each in weighed(method, range(4))]
  assert all(each.sum() == budget and not each[~MASK].any() for each in chosen)
  assert len({each.tobytes() for each in chosen}) > 1


def test_no_teacher_is_asked():
  for settings in ({}, *VARIANTS.values()):
    assert judges_read(opsa(**settings)) <= {'student'}
  assert (weighed(opsa())[0] <= 0).all()


@pytest.mark.parametrize(
  'settings',
  [{'fraction': 0.0}, {'fraction': 1.1}, {'fixed': 0.0}, {'sure': 0.1}, {'unsure': -0.1}],
)
def test_numbers_without_meaning_are_refused(settings):
  with pytest.raises(ValueError, match='opsa: fraction must lie above 0'):
    opsa(**settings)
