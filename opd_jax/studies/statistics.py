"""Floor 6. Statistics of differences that are paired by seed, and of families of them."""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from scipy import optimize, stats

ALPHA, POWER = 0.05, 0.8
MOST_SEEDS = 10_000


class Paired(NamedTuple):
  """Differences of pairs: their number, mean and standard deviation, a 95 % interval of the mean, p of zero."""

  n: int
  mean: float
  sd: float
  low: float
  high: float
  p: float


def paired(differences: Sequence[float] | np.ndarray) -> Paired:
  """Student's t over the differences, one for each seed.

  One difference has no spread, and equal ones show none: an accuracy of few problems can come out alike by chance.
  Both leave p at 1.

  Args:
    differences: at least one.

  >>> paired((1.0, 2.0, 3.0)).mean, round(paired((1.0, 2.0, 3.0)).high, 2)
  (2.0, 4.48)
  """
  values = np.asarray(differences, np.float64)
  n, mean = len(values), float(values.mean())
  sd = float(values.std(ddof=1)) if n > 1 else math.nan
  if not sd > 0:
    return Paired(n, mean, sd, -math.inf, math.inf, 1.0)
  error = sd / math.sqrt(n)
  half = float(stats.t.ppf(1 - ALPHA / 2, n - 1)) * error
  return Paired(n, mean, sd, mean - half, mean + half, _two_sided(mean / error, n))


def equivalence_p(found: Paired, within: float) -> float:
  """p of the hypothesis that the true mean lies outside ±within: the larger of two one-sided tests."""
  if not found.sd > 0:
    return 1.0
  error = found.sd / math.sqrt(found.n)
  return float(stats.t.sf((within - abs(found.mean)) / error, found.n - 1))


def beyond_p(found: Paired, within: float) -> float:
  """p of the hypothesis that the true mean lies inside ±within, for a mean that lies outside."""
  if not found.sd > 0 or abs(found.mean) <= within:
    return 1.0
  error = found.sd / math.sqrt(found.n)
  return min(1.0, _two_sided((abs(found.mean) - within) / error, found.n))


def _two_sided(t: float, n: int) -> float:
  return float(2 * stats.t.sf(abs(t), n - 1))


def bootstrap(
  differences: np.ndarray, *, draws: int = 10_000, seed: int = 0
) -> tuple[float, float]:
  """A 95 % interval of the mean over seeds *and* problems, which all seeds are asked: both are drawn anew.

  Percentiles of few seeds are too narrow; they are stretched about the mean by sqrt(n / (n - 1)) t / z.

  Args:
    differences: [seeds, problems].
    draws: how many replicates.
    seed: of the draws.
  """
  seeds, problems = differences.shape
  if seeds < 2 or not differences.std() > 0:
    return -math.inf, math.inf
  rng = np.random.default_rng(seed)
  drawn_seeds = rng.multinomial(seeds, np.full(seeds, 1 / seeds), draws)
  drawn_problems = rng.multinomial(problems, np.full(problems, 1 / problems), draws)
  means = ((drawn_seeds @ differences) * drawn_problems).sum(axis=1) / (seeds * problems)
  low, high = np.quantile(means, [ALPHA / 2, 1 - ALPHA / 2])
  mean = differences.mean()
  stretch = math.sqrt(seeds / (seeds - 1)) * float(
    stats.t.ppf(1 - ALPHA / 2, seeds - 1) / stats.norm.ppf(1 - ALPHA / 2)
  )
  return float(mean + stretch * (low - mean)), float(mean + stretch * (high - mean))


def holm(p: Sequence[float]) -> list[float]:
  """p of each test of a family, such that one below 5 % is a mistake in at most 5 % of all families.

  >>> holm((0.01, 0.04, 0.03))
  [0.03, 0.06, 0.06]
  """
  adjusted, most = [0.0] * len(p), 0.0
  for rank, place in enumerate(sorted(range(len(p)), key=lambda place: p[place])):
    most = max(most, min(1.0, (len(p) - rank) * p[place]))
    adjusted[place] = most
  return adjusted


def power_of(difference: float, sd: float, n: int) -> float:
  """The chance that a two-sided t test at 5 % over n pairs sees a true difference."""
  bound, shift = float(stats.t.ppf(1 - ALPHA / 2, n - 1)), math.sqrt(n) * abs(difference) / sd
  # The other tail, of a wrong sign, is not counted: scipy's nct gives NaN far out there.
  return float(stats.nct.sf(bound, n - 1, shift))


def detectable(sd: float, n: int) -> float:
  """The true difference that n pairs see with 80 % power; infinite where their spread is not known."""
  if n < 2 or not sd > 0:
    return math.inf
  upper = sd * (float(stats.t.ppf(1 - ALPHA / 2, n - 1)) + 2 * float(stats.t.ppf(POWER, n - 1)))
  found: Any = optimize.brentq(lambda x: power_of(x, sd, n) - POWER, 1e-9 * sd, upper)
  return found


def seeds_needed(sd: float, difference: float) -> int | None:
  """The least number of pairs that see a true difference with 80 % power; None above ten thousand."""
  if not sd > 0 or power_of(difference, sd, MOST_SEEDS) < POWER:
    return None
  low, high = 1, MOST_SEEDS  # not enough, enough
  while high - low > 1:
    middle = (low + high) // 2
    low, high = (low, middle) if power_of(difference, sd, middle) >= POWER else (middle, high)
  return high
