"""Floor 6. The predictive law of self-distillation: what training gains is a line in the gap that was there before.

    gain ≈ a · gap + b

arXiv:2605.30070, fitted there by ordinary least squares, without weights, to one point for each context or model: the
gap of `training/gap.py`, and the gain in accuracy from before training to its end under the decoding of the validation.
Printed: a = 1.492, b = -0.003, R² = 0.949 (one 8B model, six contexts); a = 0.663, b = 0.004 (another family); so a
family of models is calibrated for itself, with two or three points. Readings taken: a run is a point (the paper's
points are means over two or three seeds); errors are the classical ones of least squares, from what the points scatter
about the line with n - 2 degrees of freedom, and as in the paper the gap's own error is left out, which flattens a by
about 1 / (1 + error² / spread of the gaps²). `left_out` is the root mean square error of every point under the line
through the others.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float
from scipy import stats

Points = Sequence[float] | Float[np.ndarray, ' N']


class Law(NamedTuple):
  """The line, and how well it is known. What too few points cannot tell is NaN."""

  slope: float
  intercept: float
  slope_error: float  # standard errors
  intercept_error: float
  slope_interval: tuple[float, float]  # 95 %
  intercept_interval: tuple[float, float]
  r_squared: float
  correlation: float
  left_out: float
  points: int


def fit(gaps: Points, gains: Points) -> Law:
  """Fits the law to points.

  Three points (0, 0), (1, 1), (2, 3) give a = 1.5, b = -1/6, each of them ± 0.289 and ± 0.373.

  Args:
    gaps: before training, as fractions.
    gains: after it.
  """
  x, y = np.asarray(gaps, np.float64), np.asarray(gains, np.float64)
  n = len(x)
  if not (np.isfinite(x).all() and np.isfinite(y).all()):
    raise ValueError('gap: every gap and every gain must be a finite number.')
  spread = float(((x - x.mean()) ** 2).sum()) if n else 0.0
  if (
    n < 2 or not np.ptp(x) > 0
  ):  # the mean of equal numbers may round, and then their spread is not zero
    raise ValueError(
      f'gap: a line needs at least two points of different gaps, got {n} with gaps {x.tolist()}. Measure other '
      'contexts.'
    )
  slope = float(((x - x.mean()) * (y - y.mean())).sum()) / spread
  intercept = float(y.mean() - slope * x.mean())
  off = y - (slope * x + intercept)
  total, left = float(((y - y.mean()) ** 2).sum()), float((off**2).sum())
  leverage = 1 / n + (x - x.mean()) ** 2 / spread
  sd = math.sqrt(left / (n - 2)) if n > 2 else math.nan
  errors = sd / math.sqrt(spread), sd * math.sqrt(1 / n + x.mean() ** 2 / spread)
  reach = float(stats.t.ppf(0.975, n - 2)) if n > 2 else math.nan
  around = lambda value, error: (value - reach * error, value + reach * error)
  return Law(
    slope=slope,
    intercept=intercept,
    slope_error=errors[0],
    intercept_error=errors[1],
    slope_interval=around(slope, errors[0]),
    intercept_interval=around(intercept, errors[1]),
    r_squared=1 - left / total if total > 0 else math.nan,
    correlation=slope * math.sqrt(spread / total) if total > 0 else math.nan,
    left_out=float(np.sqrt(np.mean((off / (1 - leverage)) ** 2))) if n > 2 else math.nan,
    points=n,
  )
