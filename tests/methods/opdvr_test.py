"""OPDVR against its formula: both signs, the gate, its grouped form, and what is not verified."""

import jax
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
  by_sequence,
  from_logits,
  ours,
  paper,
  same,
  stop,
  weigh,
)
from jax import numpy as jnp

from opd_jax.methods.opdvr import VARIANTS, opdvr

KNOWN = MASK & np.isfinite(REWARDS)[:, None]
RIGHT = (np.array(REWARDS) == 1)[:, None]


def better_than_mates():
  """1, -1, or 0 where a group agrees; the rewards that are known count."""
  sign = np.zeros((len(GROUPS), 1))
  for row, group in enumerate(GROUPS):
    mates = [r for r, its in zip(REWARDS, GROUPS, strict=True) if its == group and np.isfinite(r)]
    if np.isfinite(REWARDS[row]):
      sign[row] = np.sign(REWARDS[row] - np.mean(mates))
  return sign


def published(of):
  gap = stop(of.q - of.p)
  return jnp.where(RIGHT, jnp.maximum(0, gap), -jnp.maximum(0, -gap))


def conflicting(of):
  gap = stop(of.q - of.p)
  return jnp.where(RIGHT, -jnp.maximum(0, -gap), jnp.maximum(0, gap))


def grouped(of):
  sign = better_than_mates()
  return sign * jax.nn.relu(sign * stop(of.q - of.p))


CASES = {
  'published': ({}, published),
  'conflicting': (VARIANTS['conflicting'], conflicting),
  'grouped': (VARIANTS['grouped'], grouped),
}


@pytest.mark.parametrize('settings, advantage', CASES.values(), ids=CASES)
def test_it_is_the_published_formula(settings, advantage):
  same(ours(opdvr(**settings)), paper(lambda of: by_sequence(KNOWN, -advantage(of) * of.p)))


def test_what_is_kept_and_what_conflicts_together_are_opd():
  parts = [ours(opdvr(gate=gate))[1] for gate in ('agreed', 'conflicting')]
  whole = paper(lambda of: by_sequence(KNOWN, -stop(of.q - of.p) * of.p))
  np.testing.assert_allclose(sum(parts), whole[1], rtol=0, atol=1e-14)


def coefficients(method, reward=REWARDS, seeds=(0,)):
  """For each of some keys."""
  logits = STUDENT_LOGITS, TEACHER_LOGITS, REFERENCE_LOGITS
  evidence, _ = from_logits(*logits, RESPONSE, method)
  evidence = evidence._replace(rollout=evidence.rollout._replace(reward=jnp.asarray(reward)))
  program, keys = weigh(method), map(jax.random.key, seeds)
  return [np.asarray(program(evidence._replace(key=key))[0].coefficient) for key in keys]


def test_a_group_that_agrees_teaches_nothing_where_groups_are_compared():
  everything_right = np.ones(len(GROUPS))
  assert not coefficients(opdvr(grouped=True), everything_right)[0].any()
  assert coefficients(opdvr(), everything_right)[0].any()


def test_the_random_gate_opens_for_as_many_tokens_of_every_response():
  own = (coefficients(opdvr())[0] != 0).sum(axis=1)
  drawn = [each != 0 for each in coefficients(opdvr(**VARIANTS['random gate']), seeds=range(4))]
  assert all((each.sum(axis=1) == own).all() for each in drawn)
  assert len({each.tobytes() for each in drawn}) > 1


def test_a_gate_that_nobody_knows_is_refused():
  with pytest.raises(ValueError, match='gate is one of agreed'):
    opdvr(gate='open')
