"""pass@k against counting, and the bootstrap against its own promise."""

import itertools
import math

import numpy as np
import pytest

from opd_jax.evaluation.pass_at_k import interval, pass_at_k


@pytest.mark.parametrize('samples', [1, 3, 6])
def test_pass_at_k_is_the_fraction_of_subsets_with_a_correct_one(samples):
  for correct, k in itertools.product(range(samples + 1), range(1, samples + 1)):
    drawn = list(itertools.combinations([True] * correct + [False] * (samples - correct), k))
    counted = sum(map(any, drawn)) / len(drawn)
    assert pass_at_k(samples, np.array([correct]), k)[0] == pytest.approx(counted, abs=1e-12)


def test_pass_at_k_is_the_formula_where_factorials_overflow():
  samples, k = 1024, 512
  correct = np.array([0, 1, 2, 512, 513, 1024])
  formula = [1 - math.comb(samples - c, k) / math.comb(samples, k) for c in correct.tolist()]
  np.testing.assert_allclose(pass_at_k(samples, correct, k), formula, rtol=1e-12)
  # One of sixteen correct, four drawn: a quarter. Of four samples 1, 2 and 3 correct, two drawn.
  assert pass_at_k(16, np.array([1]), 4)[0] == pytest.approx(0.25)
  np.testing.assert_allclose(pass_at_k(4, np.array([1, 2, 3]), 2), [1 / 2, 5 / 6, 1])


def test_pass_at_k_is_unbiased_and_the_plug_in_is_not():
  p, samples, k = 0.2, 8, 4
  rng = np.random.default_rng(0)
  correct = rng.binomial(samples, p, size=200_000)
  truth = 1 - (1 - p) ** k
  error = pass_at_k(samples, correct, k).std() / np.sqrt(len(correct))
  assert abs(pass_at_k(samples, correct, k).mean() - truth) < 5 * error
  assert abs((1 - (1 - correct / samples) ** k).mean() - truth) > 20 * error


@pytest.mark.parametrize('samples, correct, k', [(4, 1, 5), (4, 1, 0), (4, 5, 2), (4, -1, 2)])
def test_what_cannot_be_drawn_is_refused(samples, correct, k):
  with pytest.raises(ValueError, match=r'pass@'):
    pass_at_k(samples, np.array([correct]), k)


def test_an_interval_covers_the_mean_as_often_as_it_says():
  rng = np.random.default_rng(1)
  covered = 0
  for trial in range(200):
    low, high = interval(rng.random(40) ** 2, seed=trial)
    covered += low <= 1 / 3 <= high
  assert 180 <= covered <= 200  # 95 % less what 40 problems lack; four standard errors are 6 %
  assert interval(np.ones(5)) == (1, 1)
