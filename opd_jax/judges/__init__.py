"""Floor 3. Who judges: which weights, where they lie, what they are shown, and how a judge that is the student moves.

`spec` is what gin says; `local`, `cached`, `routing` and `combining` hold judges at work, behind the one protocol of
`protocol`. Whatever a judge is shown, what it tells is indexed by response position, so no prompt of its own can
misalign a loss.
"""

from opd_jax.judges.spec import combined, ema, every, frozen, itself, live, never, routed

__all__ = ['combined', 'ema', 'every', 'frozen', 'itself', 'live', 'never', 'routed']
