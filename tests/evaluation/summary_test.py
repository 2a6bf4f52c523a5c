"""What responses come to, by hand."""

import math

import numpy as np
import pytest

from opd_jax.evaluation import summary
from opd_jax.evaluation.pass_at_k import interval


def row(outcome, *, second='', reward=None, length=10, ended_by='stop'):
  reward = float(outcome == 'correct') if reward is None else reward
  return {'outcome': outcome, 'second': second, 'reward': reward, 'length': length, 'ended_by': ended_by}  # fmt: skip


def test_avg_and_pass_at_k_of_sixteen_samples():
  """c of 16 correct: pass@4 is 0, .25, .45, .728022, .961538, 1, as the AOPD paper's Pass@4 is made."""
  correct = [0, 1, 2, 4, 8, 13]
  rows = [row('correct' if n < c else 'wrong') for c in correct for n in range(16)]
  found = summary.by_problem(rows, samples=16, ks=summary.counts_of(16))
  assert [*found] == ['avg@16', 'pass@4', 'pass@8', 'pass@16']
  np.testing.assert_allclose(found['avg@16'], np.array(correct) / 16)
  np.testing.assert_allclose(found['pass@4'], [0, 0.25, 0.45, 0.728022, 0.961538, 1], atol=1e-6)
  assert found['pass@16'].tolist() == [0, 1, 1, 1, 1, 1]


def test_what_nobody_looked_at_is_in_no_average():
  rows = [row('correct'), row('', reward=math.nan), row('', reward=math.nan), row('')]
  found = summary.by_problem(rows, samples=2, ks=(2,))
  assert [*found] == ['avg@2'] and found['avg@2'].tolist() == [1]
  assert summary.by_problem(rows[1:3], samples=2, ks=(2,)) == {}
  unseen = [{**each, 'reward': None} for each in rows[1:3]]
  assert summary.shares(unseen) == {'length': 10, 'truncated': 0}


def test_shares_of_all_responses():
  rows = [
    row('correct', second='wrong', length=20),
    row('unparsed', second='correct', ended_by='budget'),
    row('unparsed', second='timed out', ended_by='context', reward=0.5),
    row('timed out', second='correct'),
  ]
  assert summary.shares(rows) == {
    'length': 12.5, 'truncated': 0.5, 'reward': 0.375, 'unparsed': 0.5, 'timed_out': 0.25, 'disagreed': 0.5,
  }  # fmt: skip


def test_one_problem_has_no_interval_and_equal_ones_no_width():
  assert all(map(math.isnan, interval(np.array([0.5]))))
  assert interval(np.full(7, 0.5)) == pytest.approx((0.5, 0.5))


def test_an_interval_is_that_of_drawing_problems_one_by_one():
  values = np.random.default_rng(3).integers(0, 5, size=30) / 4
  rng = np.random.default_rng(0)
  means = values[rng.integers(30, size=(40_000, 30))].mean(axis=1)
  assert interval(values) == pytest.approx(np.quantile(means, (0.025, 0.975)), abs=0.01)
