"""TGPO against its formula: the outcome, the teacher's best token, both divisors and the weight by step."""

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
  through_the_pass,
  weigh,
)

from opd_jax.methods.tgpo import VARIANTS, tgpo

BEST = TEACHER_LOGITS.argmax(axis=-1)


def outcome():
  """The group's advantage of the reward, over rows that a verifier has seen."""
  found = np.zeros(len(GROUPS))
  for row, group in enumerate(GROUPS):
    mates = [r for r, its in zip(REWARDS, GROUPS, strict=True) if its == group and np.isfinite(r)]
    if np.isfinite(REWARDS[row]) and np.std(mates) > 0:
      found[row] = (REWARDS[row] - np.mean(mates)) / (np.std(mates) + 1e-6)
  return found[:, None]


def formula(*, weight, reinforce=True, summed=False):
  def loss(of):
    missed = jnp.where(MASK, -jnp.take_along_axis(of.P, BEST[..., None], -1)[..., 0], 0.0)
    rewarded = jnp.where(MASK, -jnp.exp(of.p - stop(of.p)) * outcome(), 0.0)
    guided = missed.sum() / (MASK.any(axis=1).sum() if summed else MASK.sum())
    return weight * guided + reinforce * rewarded.sum() / MASK.sum()

  return loss


CASES = {
  'constant weight': (VARIANTS['constant weight'], {'weight': 2e-3}),
  'guidance only': (VARIANTS['guidance only'], {'weight': 1.0, 'reinforce': False}),
  'as printed': (
    {'weight': 0.5, **VARIANTS['as printed']},
    {'weight': 0.5, 'summed': True},
  ),
}


@pytest.mark.parametrize('settings, papers', CASES.values(), ids=CASES)
def test_it_is_the_published_formula(settings, papers):
  same(ours(tgpo(**settings)), paper(formula(**papers)))


@pytest.mark.parametrize('step, weight', [(0, 2e-3), (50, 1.5e-3), (200, 0.0), (900, 0.0)])
def test_the_weight_falls_by_a_hundred_thousandth_a_step(step, weight):
  logits = STUDENT_LOGITS, TEACHER_LOGITS, REFERENCE_LOGITS
  evidence, targets = from_logits(*logits, RESPONSE, tgpo())
  terms = weigh(tgpo())(evidence._replace(step=jnp.int64(step)))
  got = through_the_pass(STUDENT_LOGITS, RESPONSE, targets, terms)
  same(got, paper(formula(weight=weight)))


def test_a_student_that_is_sure_of_the_best_token_has_nothing_to_learn_from_the_guidance():
  sure = 200.0 * np.eye(TEACHER_LOGITS.shape[-1])[BEST]
  gradient = ours(tgpo(**VARIANTS['guidance only']), student=sure)[1]
  np.testing.assert_allclose(gradient, 0.0, atol=1e-15)
