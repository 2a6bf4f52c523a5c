"""Floor 6. `opd certify`: one screen of certificates."""

import argparse
import json
import math
from typing import Any

from opd_jax import trust
from opd_jax.commands import console, flags

HELP = (
  'bias, variance and fixed point of a gradient, by enumeration; exit status 1 when a claim fails'
)
EPILOG = """\
  opd certify --all
  opd certify aopd 'iw_opd, signed' 'k2 as a loss'
  opd certify --module my_method                    the methods of a module of your own
"""
SUMMED = {'exact': 'divergences over the whole vocabulary', 'term': 'terms'}


def add_flags(parser: argparse.ArgumentParser) -> None:
  parser.add_argument(
    'names',
    nargs='*',
    metavar='NAME',
    help='a method, "METHOD, VARIANT", an estimator or a term',
  )
  parser.add_argument(
    '--all',
    action='store_true',
    help='every method, estimator and term, also those known to be bad',
  )
  flags.add_module(parser)
  flags.add_json(parser)


def run(args: argparse.Namespace) -> int:
  if args.module is None and args.all == bool(args.names):
    raise ValueError(
      'name methods, variants, estimators or terms, or --all for everything (`opd methods` lists the methods).'
    )
  from opd_jax.certify import certificates

  module = None if args.module is None else trust.imported(args.module)
  with console.progress_bar('certify') as bar:
    lines = certificates.certificates(args.names or None, bar, module)
  if args.json:
    print(json.dumps([_record(line) for line in lines], indent=2))
  else:
    _print(lines)
  return 0 if all(line.holds for line in lines) else 1


def _record(line: Any) -> dict[str, Any]:
  """A line as a JSON record; JSON has no infinity, so infinities become null."""
  finite = lambda x: x if not isinstance(x, float) or math.isfinite(x) else None
  return {name: finite(value) for name, value in line._asdict().items()}


def _print(lines: list[Any]) -> None:
  console.table(
    ('', 'name', 'claim', 'bias', 'cosine', 'deviation', 'fixed point'),
    [
      ('ok' if line.holds else 'FAILS', line.name, line.claim, *map(_number, line[3:7]))
      for line in _screen(lines)
    ],
  )
  failed = sum(not line.holds for line in lines)
  print(
    f'{len(lines)} certificates, {failed or "none"} failed. Relative to the exact gradient; fixed point in nats.'
  )


def _number(x: float | None) -> str:
  if x is None:
    return ''
  return '0' if x == 0 else f'{x:.1e}' if abs(x) < 1e-3 else f'{x:.3f}'


def _screen(lines: list[Any]) -> list[Any]:
  """Lines to print: those of a kind in SUMMED that hold become one."""
  from opd_jax.certify.certificates import Line

  shown = [line for line in lines if line.kind not in SUMMED or not line.holds]
  for kind, what in SUMMED.items():
    passed = [line for line in lines if line.kind == kind and line.holds]
    if passed:
      worst = max((line.bias for line in passed if line.bias is not None), default=None)
      claim = 'unbiased, the worst of them' if kind == 'exact' else passed[0].claim
      shown.append(Line(kind, f'{len(passed)} {what}', claim, worst, None, None, None, True))
  return shown
