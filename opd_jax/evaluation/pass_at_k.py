"""Floor 4. Numbers of an evaluation with several samples to a problem, and how sure they are."""

import math

import numpy as np
from jaxtyping import Float, Int

from opd_jax.types import AnyArray

REPLICATES = 10_000


def pass_at_k(
  samples: int, correct: Int[AnyArray, ' problems'], k: int
) -> Float[AnyArray, ' problems']:
  """The chance that k of the samples, drawn without putting back, hold a correct one: 1 - C(n-c, k) / C(n, k).

  Unbiased for 1 - (1 - p)^k, unlike 1 - (1 - c/n)^k (arXiv:2107.03374). As a product, so that nothing overflows:
  4 samples, 1 correct, k = 2 give 1 - (3/4)(2/3) = 0.5.
  """
  if not 1 <= k <= samples:
    raise ValueError(f'pass@{k} needs at least {k} samples to a problem, got {samples}.')
  correct = np.asarray(correct)
  if ((correct < 0) | (correct > samples)).any():
    raise ValueError(f'pass@{k}: correct answers lie from 0 to {samples}, got {correct.tolist()}.')
  drawn = np.arange(k)
  missed = np.clip(samples - correct[:, None] - drawn, 0, None) / (samples - drawn)
  return 1 - missed.prod(axis=1)


def interval(values: Float[AnyArray, ' problems'], *, seed: int = 0) -> tuple[float, float]:
  """A 95 % bootstrap interval of the mean over problems; what another draw of samples would change is part of it.

  Problems of equal value are drawn together, so many of them cost no more than few. One problem has no spread: NaN.
  """
  levels, counts = np.unique(np.asarray(values, np.float64), return_counts=True)
  problems = int(counts.sum())
  if problems < 2:
    return math.nan, math.nan
  rng = np.random.default_rng(seed)
  means = rng.multinomial(problems, counts / problems, REPLICATES) @ levels / problems
  low, high = np.quantile(means, (0.025, 0.975))
  return float(low), float(high)
