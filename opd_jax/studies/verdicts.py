"""Floor 6. What a study tells about each claim: agrees, contradicts, or cannot tell."""

import math
from typing import NamedTuple

import numpy as np

from opd_jax.studies import measures, statistics
from opd_jax.studies.ledger import Ledger, Never, NotYet
from opd_jax.studies.statistics import ALPHA, Paired
from opd_jax.studies.study import Cell, Contrast, Measure, Printed

AGREES, CONTRADICTS, CANNOT_TELL = 'agrees', 'contradicts', 'cannot tell'


class Comparison(NamedTuple):
  """Two cells, seed by seed: what `above` has more than `below`.

  `over_problems` is an interval over seeds and problems, where outcomes tell it; `holm` is p within the family;
  `detectable` the difference that the study sees with 80 % power; `printed` the paper's difference and its error.
  """

  contrast: Contrast
  measure: Measure
  below: str
  above: str
  found: Paired | None
  over_problems: tuple[float, float] | None
  holm: float
  detectable: float
  seeds_needed: int | None
  printed: tuple[float, float] | None
  verdict: str


def compared(ledger: Ledger) -> list[Comparison]:
  """All pairs of neighbours of all claims. Their p are one family, those that have not run included."""
  study, pairs = ledger.study, []
  for contrast in study.contrasts:
    measure = study.measure(contrast.measure)
    for below, above in zip(contrast.order, contrast.order[1:], strict=False):
      pairs.append(_pair(ledger, contrast, measure, study.cell(below), study.cell(above)))
  p = statistics.holm([_p(pair) for pair in pairs])
  return [
    pair._replace(holm=adjusted, verdict=_verdict(pair, adjusted))
    for pair, adjusted in zip(pairs, p, strict=True)
  ]


def rows_of(pairs: list[Comparison]) -> list[dict[str, object]]:
  """The comparisons as JSON; a number that is not known yet is null."""
  number = lambda x: float(x) if math.isfinite(x) else None
  return [
    {
      'claim': f'{pair.contrast.claim}: {pair.above} - {pair.below}, {pair.measure.name}',
      'difference': None if pair.found is None else number(pair.found.mean),
      'low': None if pair.found is None else number(pair.found.low),
      'high': None if pair.found is None else number(pair.found.high),
      'p': number(pair.holm),
      'detectable': number(pair.detectable),
      'verdict': pair.verdict,
      'seeds': 0 if pair.found is None else pair.found.n,
    }
    for pair in pairs
  ]


def verdict_of(pairs: list[Comparison]) -> str:
  """Of a claim: it holds where it holds of all its pairs, and fails with one of them."""
  verdicts = {pair.verdict for pair in pairs}
  if CONTRADICTS in verdicts:
    return CONTRADICTS
  return AGREES if verdicts == {AGREES} else CANNOT_TELL


def values_of(ledger: Ledger, cell: Cell, measure: Measure) -> dict[int, float]:
  """The measure of every seed whose run is done and has it."""
  values = {}
  for seed in ledger.study.seeds:
    try:
      run = ledger.run_of(cell, seed)
    except (NotYet, Never):
      continue
    if ledger.is_done(run):
      values[seed] = measures.value_of(ledger.folder(run), measure)
  return values


def _pair(
  ledger: Ledger, contrast: Contrast, measure: Measure, below: Cell, above: Cell
) -> Comparison:
  low, high = (values_of(ledger, cell, measure) for cell in (below, above))
  seeds = [seed for seed in low if seed in high]
  found = statistics.paired([high[seed] - low[seed] for seed in seeds]) if seeds else None
  table = _by_problem(ledger, measure, below, above, seeds)
  needed = None
  if found is not None and measure.smallest is not None:
    needed = statistics.seeds_needed(found.sd, measure.smallest)
  return Comparison(
    contrast=contrast,
    measure=measure,
    below=below.name,
    above=above.name,
    found=found,
    over_problems=None if table is None else statistics.bootstrap(table),
    holm=1.0,
    detectable=statistics.detectable(found.sd, found.n) if found else math.inf,
    seeds_needed=needed,
    printed=_printed(ledger.study.printed, measure, below.name, above.name),
    verdict=CANNOT_TELL,
  )


def _by_problem(
  ledger: Ledger, measure: Measure, below: Cell, above: Cell, seeds: list[int]
) -> np.ndarray | None:
  """Differences [seeds, problems], where all runs were asked the same problems."""
  rows: list[dict[str, float]] = []
  for seed in seeds:
    low, high = (
      measures.by_problem(ledger.folder(ledger.run_of(cell, seed)), measure)
      for cell in (below, above)
    )
    if low is None or high is None or low.keys() != high.keys():
      return None
    rows.append({name: high[name] - low[name] for name in low})
  if len(rows) < 2 or any(row.keys() != rows[0].keys() for row in rows):
    return None
  return np.array([[row[name] for name in rows[0]] for row in rows])


def _printed(
  printed: tuple[Printed, ...], measure: Measure, below: str, above: str
) -> tuple[float, float] | None:
  by_cell = {one.cell: one for one in printed if one.measure == measure.name}
  if below not in by_cell or above not in by_cell:
    return None
  low, high = by_cell[below], by_cell[above]
  return high.value - low.value, math.hypot(low.standard_error, high.standard_error)


def _p(pair: Comparison) -> float:
  found, within = pair.found, pair.contrast.within
  if found is None:
    return 1.0
  if within is None:
    return found.p
  test = statistics.equivalence_p if abs(found.mean) < within else statistics.beyond_p
  return test(found, within)


def _verdict(pair: Comparison, adjusted: float) -> str:
  if pair.found is None or adjusted >= ALPHA:
    return CANNOT_TELL
  within = pair.contrast.within
  holds = pair.found.mean > 0 if within is None else abs(pair.found.mean) < within
  return AGREES if holds else CONTRADICTS
