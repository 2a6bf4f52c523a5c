"""Floor 3. Judges: their weights, layouts and contexts, and how snapshots of the student follow it.

`spec` is what gin says; `local`, `cached`, `routing` and `combining` hold judges at work, behind the one protocol of
`protocol`. Every judge returns scores by response position, so a prompt of its own cannot misalign a loss.
"""

from opd_jax.judges.spec import (
  averaged,
  combined,
  ema,
  every,
  frozen,
  gated,
  itself,
  live,
  never,
  routed,
)

__all__ = [
  'averaged',
  'combined',
  'ema',
  'every',
  'frozen',
  'gated',
  'itself',
  'live',
  'never',
  'routed',
]
