"""Floor 6. `opd certify`: one screen of certificates."""

import json
import math

from opd_jax import console
from opd_jax.certify import certificates
from opd_jax.certify.certificates import Line

SUMMED = {'exact': 'divergences over the whole vocabulary', 'term': 'terms'}


def _screen(lines: list[Line]) -> list[Line]:
  """One line for all of a kind that says the same of each, where all of them hold."""
  shown = [line for line in lines if line.kind not in SUMMED or not line.holds]
  for kind, what in SUMMED.items():
    held = [line for line in lines if line.kind == kind and line.holds]
    if held:
      worst = max((line.bias for line in held if line.bias is not None), default=None)
      claim = 'unbiased, the worst of them' if kind == 'exact' else held[0].claim
      shown.append(Line(kind, f'{len(held)} {what}', claim, worst, None, None, None, True))
  return shown


def certify(names: list[str], *, everything: bool, as_json: bool) -> bool:
  """Prints the certificates; whether all of them hold."""
  if everything == bool(names):
    raise ValueError(
      'name methods, variants, estimators or terms, or --all for everything (`opd methods` lists the methods).'
    )
  with console.progress_bar('certify') as bar:
    lines = certificates.certificates(None if everything else names, bar)
  if as_json:
    print(json.dumps([line._asdict() for line in lines], indent=2))
  else:
    number = lambda x: (
      '' if x is None else '0' if x == 0 else f'{x:.1e}' if math.fabs(x) < 1e-3 else f'{x:.3f}'
    )
    console.table(
      ('', 'estimator', 'certified', 'bias', 'cosine', 'deviation', 'fixed point'),
      [
        ('ok' if line.holds else 'FAILS', line.name, line.claim, *map(number, line[3:7]))
        for line in _screen(lines)
      ],
    )
    failed = sum(not line.holds for line in lines)
    print(
      f'{len(lines)} certificates, {failed or "none"} failed. Relative to the exact gradient; fixed point in nats.'
    )
  return all(line.holds for line in lines)
