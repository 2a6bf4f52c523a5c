"""Statistics of paired differences: identities, hand-made examples, and coverage on simulated data."""

import numpy as np
import pytest
from scipy import stats

from opd_jax.studies import statistics

RNG = np.random.default_rng


def test_the_t_interval_and_p_are_those_of_scipy():
  one, other = RNG(0).normal(size=(2, 7))
  found, reference = statistics.paired(one - other), stats.ttest_rel(one, other)
  interval = reference.confidence_interval(0.95)
  assert found.n == 7 and found.p == pytest.approx(reference.pvalue, abs=1e-14)
  assert (found.low, found.high) == pytest.approx((interval.low, interval.high), abs=1e-12)


def test_the_t_interval_covers_the_truth_as_often_as_it_says():
  drawn = RNG(1).normal(2.0, 3.0, size=(2000, 5))
  hits = [found.low < 2.0 < found.high for found in map(statistics.paired, drawn)]
  assert np.mean(hits) == pytest.approx(0.95, abs=3 * np.sqrt(0.95 * 0.05 / 2000))


@pytest.mark.parametrize('differences', [(3.0,), (1.0, 1.0, 1.0)])
def test_differences_without_a_spread_show_nothing(differences):
  found = statistics.paired(differences)
  assert found.p == 1 and found.low == -np.inf
  assert statistics.equivalence_p(found, 100.0) == 1
  assert statistics.detectable(found.sd, found.n) == np.inf


def test_holm_by_hand():
  # Sorted: 0.005 x 4, 0.01 x 3, 0.03 x 2, 0.04 x 1, and no step below the one before.
  assert statistics.holm((0.01, 0.04, 0.03, 0.005)) == pytest.approx([0.03, 0.06, 0.06, 0.02])
  assert statistics.holm(()) == [] and statistics.holm((0.7, 0.9)) == [1.0, 1.0]


def test_holm_keeps_the_mistakes_of_a_family():
  p = stats.uniform.rvs(size=(4000, 6), random_state=2)
  mistakes = np.mean([min(statistics.holm(family.tolist())) < 0.05 for family in p])
  assert mistakes == pytest.approx(1 - (1 - 0.05 / 6) ** 6, abs=0.011)


def test_two_one_sided_tests_are_those_of_scipy():
  drawn = RNG(3).normal(0.2, 1.0, size=12)
  above = stats.ttest_1samp(drawn, -1.0, alternative='greater').pvalue
  below = stats.ttest_1samp(drawn, 1.0, alternative='less').pvalue
  found = statistics.paired(drawn)
  assert statistics.equivalence_p(found, 1.0) == pytest.approx(max(above, below), abs=1e-13)
  assert statistics.beyond_p(found, 1.0) == 1
  far = statistics.paired(drawn + 3)
  shifted = stats.ttest_1samp(drawn + 3, 1.0).pvalue
  assert statistics.beyond_p(far, 1.0) == pytest.approx(shifted, abs=1e-13)


@pytest.mark.parametrize('n', [2, 5, 30])
def test_a_detectable_difference_is_seen_in_four_of_five_studies(n):
  difference = statistics.detectable(2.0, n)
  drawn = RNG(n).normal(difference, 2.0, size=(20_000, n))
  found = stats.ttest_1samp(drawn, 0.0, axis=1)
  seen = np.mean((found.pvalue < 0.05) & (found.statistic > 0))
  assert seen == pytest.approx(0.8, abs=3 * np.sqrt(0.8 * 0.2 / 20_000))


def test_detectable_scales_with_the_spread():
  assert statistics.detectable(6.0, 5) == pytest.approx(3 * statistics.detectable(2.0, 5), rel=1e-9)


def test_the_seeds_that_are_needed_are_the_least():
  # sd 1, difference 1: ten pairs, as tables of power say.
  assert statistics.seeds_needed(1.0, 1.0) == 10
  assert statistics.power_of(1.0, 1.0, 10) >= 0.8 > statistics.power_of(1.0, 1.0, 9)
  assert statistics.seeds_needed(1.0, 1e-4) is None and statistics.seeds_needed(0.0, 1.0) is None


def test_the_bootstrap_covers_the_truth_over_seeds_and_problems():
  """Crossed effects: every seed has one, every problem has one, and every answer has noise."""
  rng, hits, flat = RNG(4), [], []
  for number in range(300):
    table = 1.0 + rng.normal(0, 1, (6, 1)) + rng.normal(0, 2, (1, 40)) + rng.normal(0, 2, (6, 40))
    low, high = statistics.bootstrap(table, draws=1000, seed=number)
    hits.append(low < 1.0 < high)
    seeds_alone = statistics.paired(table.mean(axis=1))
    flat.append(seeds_alone.low < 1.0 < seeds_alone.high)
  assert np.mean(hits) >= 0.95 - 3 * np.sqrt(0.95 * 0.05 / 300)
  assert np.mean(flat) <= np.mean(hits)


def test_the_bootstrap_of_equal_problems_follows_the_seeds():
  seeds = RNG(5).normal(size=(30, 1))
  low, high = statistics.bootstrap(np.repeat(seeds, 4, axis=1))
  found = statistics.paired(seeds[:, 0])
  assert (low, high) == pytest.approx((found.low, found.high), abs=0.05)
