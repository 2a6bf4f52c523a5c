"""RG-OPD against its formula in loops: which responses are kept, and the KL on the student's best."""

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
  K,
  from_logits,
  ours,
  paper,
  same,
  stop,
  weigh,
)
from jax import numpy as jnp

from opd_jax.methods.rg_opd import VARIANTS, rg_opd


def kept_rows(of, margin):
  kept = []
  for row in np.flatnonzero(MASK.any(axis=1) & np.isfinite(REWARDS)):
    mates = [
      reward
      for reward, group in zip(REWARDS, GROUPS, strict=True)
      if group == GROUPS[row] and np.isfinite(reward)
    ]
    gap = float(np.asarray(stop(of.q - of.p))[row, MASK[row]].sum())
    better = REWARDS[row] > np.mean(mates)
    if gap > margin if better else gap < -margin:
      kept.append(int(row))
  return kept


def on_top(of, *, tail):
  """Reverse KL on the student's best K: with one entry for the rest, or both sides divided by their mass."""
  log_p, ids = jax.lax.top_k(of.P, K)
  log_q = jnp.take_along_axis(of.Q, ids, -1)
  if not tail:
    log_p, log_q = (x - jax.nn.logsumexp(x, -1, keepdims=True) for x in (log_p, log_q))
    return (jnp.exp(log_p) * (log_p - log_q)).sum(-1)
  rest = lambda x: jnp.log1p(-jnp.exp(x).sum(-1))
  inside = (jnp.exp(log_p) * (log_p - log_q)).sum(-1)
  return inside + jnp.exp(rest(log_p)) * (rest(log_p) - rest(log_q))


CASES = {
  'published': ({}, 0.0, True),
  'no tail': (VARIANTS['no tail'], 0.0, False),
  'a margin': ({'margin': 3.0}, 3.0, True),
}


@pytest.mark.parametrize('settings, margin, tail', CASES.values(), ids=CASES)
def test_it_is_the_published_formula(settings, margin, tail):
  def formula(of):
    rows = kept_rows(of, margin)
    assert 0 < len(rows) < MASK.any(axis=1).sum()
    value = on_top(of, tail=tail)
    return sum(value[row, MASK[row]].sum() for row in rows) / MASK[rows].sum()

  same(ours(rg_opd(k=K, **settings)), paper(formula))


def coefficients(method, reward, seeds=(0,)):
  """For each of some keys."""
  logits = STUDENT_LOGITS, TEACHER_LOGITS, REFERENCE_LOGITS
  evidence, _ = from_logits(*logits, RESPONSE, method)
  evidence = evidence._replace(rollout=evidence.rollout._replace(reward=jnp.asarray(reward)))
  program, keys = weigh(method), map(jax.random.key, seeds)
  return [np.asarray(program(evidence._replace(key=key))[0].coefficient) for key in keys]


def test_what_nobody_verified_is_dropped():
  assert not coefficients(rg_opd(k=K), np.full(len(GROUPS), np.nan))[0].any()


def test_in_a_group_that_agrees_only_what_the_teacher_likes_less_is_kept():
  (found,) = coefficients(rg_opd(k=K), np.ones(len(GROUPS)))
  log = lambda x: np.asarray(jax.nn.log_softmax(x))
  pick = lambda x: np.take_along_axis(log(x), RESPONSE[..., None], -1)[..., 0]
  gap = np.where(MASK, pick(TEACHER_LOGITS) - pick(STUDENT_LOGITS), 0).sum(axis=1)
  np.testing.assert_array_equal(found.any(axis=1), gap < 0)


def test_the_random_control_keeps_as_many_responses():
  own = coefficients(rg_opd(k=K), REWARDS)[0].any(axis=1).sum()
  found = coefficients(rg_opd(k=K, **VARIANTS['random']), REWARDS, range(6))
  drawn = [each.any(axis=1) for each in found]
  assert all(each.sum() == own and not each[~MASK.any(axis=1)].any() for each in drawn)
  assert len({each.tobytes() for each in drawn}) > 1


def test_numbers_without_meaning_are_refused():
  with pytest.raises(ValueError, match='margin must not be negative'):
    rg_opd(margin=-1.0)
