"""Floor 3. Judges: their weights, layouts and contexts, and how snapshots of the student follow it.

`spec` is what gin says; `local`, `remote`, `cached`, `routing` and `combining` hold judges at work, behind the one
protocol of `protocol`. Every judge returns scores by response position, so a prompt of its own cannot misalign a loss.
"""

from opd_jax.judges.refresh import ema, every, gated, live, never
from opd_jax.judges.served_spec import served
from opd_jax.judges.spec import averaged, combined, foreign, frozen, itself, routed

__all__ = [
  'averaged',
  'combined',
  'ema',
  'every',
  'foreign',
  'frozen',
  'gated',
  'itself',
  'live',
  'never',
  'routed',
  'served',
]
