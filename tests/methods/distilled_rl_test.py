"""Distilled RL against its formula in loops: the held ratio, its geometric mean, and whom it is reset for."""

import math

import numpy as np
import pytest
from evidence_worlds import GROUPS, MASK, REWARDS, at_ratio_one, ours, paper, same, stop

from opd_jax.methods.distilled_rl import VARIANTS, distilled_rl


def outcome(row):
  mates = [
    reward
    for reward, group in zip(REWARDS, GROUPS, strict=True)
    if group == GROUPS[row] and np.isfinite(reward)
  ]
  if not np.isfinite(REWARDS[row]) or np.std(mates) == 0:
    return 0.0
  return (REWARDS[row] - np.mean(mates)) / (np.std(mates) + 1e-6)


def formula(bound=3.0, reset=True, normalised=True):
  def loss(of):
    u, advantage = np.exp(np.asarray(stop(of.q - of.p))), np.zeros(MASK.shape)
    for row in np.flatnonzero(MASK.any(axis=1)):
      held = np.clip(u[row, MASK[row]], 1 / bound, bound)
      share = held / np.prod(held) ** (1 / len(held)) if normalised else held
      a = outcome(row)
      advantage[row, MASK[row]] = a * share if a > 0 or not reset else a
    return at_ratio_one(of, advantage)

  return loss


CASES = {
  'published': ({}, {}),
  'no reset': (VARIANTS['no reset'], {'reset': False}),
  'not normalised': (VARIANTS['not normalised'], {'normalised': False}),
  'no bound': (VARIANTS['no bound'], {'bound': math.inf}),
  'no teacher': ({'bound': 1.0}, {'bound': 1.0}),
}


@pytest.mark.parametrize('settings, papers', CASES.values(), ids=CASES)
def test_it_is_the_published_formula(settings, papers):
  same(ours(distilled_rl(**settings)), paper(formula(**papers)))


def test_without_a_teacher_it_is_grpo():
  advantage = np.array([[outcome(row)] for row in range(len(GROUPS))])
  same(ours(distilled_rl(bound=1.0)), paper(lambda of: at_ratio_one(of, advantage * MASK)))


def test_numbers_without_meaning_are_refused():
  with pytest.raises(ValueError, match='bound must be at least 1'):
    distilled_rl(bound=0.5)
