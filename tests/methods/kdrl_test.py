"""KDRL against its formula: the outcome of a group, three estimators, and the mask of the reward."""

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

from opd_jax.methods.kdrl import VARIANTS, kdrl
from opd_jax.methods.opd import opd


def outcome():
  """The group's advantage of the reward, over rows that a verifier has seen."""
  found = np.zeros(len(GROUPS))
  for row, group in enumerate(GROUPS):
    mates = [r for r, its in zip(REWARDS, GROUPS, strict=True) if its == group and np.isfinite(r)]
    if np.isfinite(REWARDS[row]) and np.std(mates) > 0:
      found[row] = (REWARDS[row] - np.mean(mates)) / (np.std(mates) + 1e-6)
  return found[:, None]


ESTIMATORS = {
  'k2': lambda of: 0.5 * (of.p - of.q) ** 2,
  'k3': lambda of: jnp.exp(of.q - of.p) - 1 - (of.q - of.p),
  'reward': lambda of: -jnp.exp(of.p - stop(of.p)) * stop(of.q - of.p),
}


def formula(beta, estimator, keep=MASK):
  def loss(of):
    reinforced = -jnp.exp(of.p - stop(of.p)) * outcome()
    distilled = jnp.where(keep, ESTIMATORS[estimator](of), 0)
    return (jnp.where(MASK, reinforced, 0) + beta * distilled).sum() / MASK.sum()

  return loss


WRONG = MASK & ~(np.array(REWARDS) > 0)[:, None]
CASES = {
  'constant': (VARIANTS['constant'], (2e-3, 'k2')),
  'k3': ({'coefficient': 0.7, **VARIANTS['k3']}, (0.7, 'k3')),
  'reward': ({'coefficient': 0.7, **VARIANTS['reward']}, (0.7, 'reward')),
  'where wrong': ({'coefficient': 0.7, **VARIANTS['where wrong']}, (0.7, 'k2', WRONG)),
}


@pytest.mark.parametrize('settings, papers', CASES.values(), ids=CASES)
def test_it_is_the_published_formula(settings, papers):
  assert abs(outcome()).max() > 1
  same(ours(kdrl(**settings)), paper(formula(*papers)))


@pytest.mark.parametrize('step, beta', [(0, 5e-3), (50, 3e-3), (100, 1e-3), (400, 1e-3)])
def test_the_weight_falls(step, beta):
  logits = STUDENT_LOGITS, TEACHER_LOGITS, REFERENCE_LOGITS
  evidence, targets = from_logits(*logits, RESPONSE, kdrl())
  terms = weigh(kdrl())(evidence._replace(step=jnp.int64(step)))
  got = through_the_pass(STUDENT_LOGITS, RESPONSE, targets, terms)
  same(got, paper(formula(beta, 'k2')))


@pytest.mark.parametrize('estimator', ['k2', 'reward'])
def test_where_nobody_verified_it_is_opd(estimator):
  """k2 as a loss has, sample by sample, the gradient of the gap as an advantage."""
  method = kdrl(coefficient=1.0, estimator=estimator)
  logits = STUDENT_LOGITS, TEACHER_LOGITS, REFERENCE_LOGITS
  evidence, targets = from_logits(*logits, RESPONSE, method)
  unknown = evidence.rollout._replace(reward=np.full(len(GROUPS), np.nan))
  terms = weigh(method)(evidence._replace(rollout=unknown))
  gradient = through_the_pass(STUDENT_LOGITS, RESPONSE, targets, terms)[1]
  np.testing.assert_allclose(gradient, ours(opd())[1], rtol=0, atol=1e-15)


def test_an_estimator_that_nobody_knows_is_refused():
  with pytest.raises(ValueError, match='estimator is one of k2, k3, reward'):
    kdrl(estimator='k1')
