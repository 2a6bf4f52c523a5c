"""Floor 6. `opd study`: runs a study, goes on with one that was interrupted, prints its table, or its commands."""

import argparse
import math
from pathlib import Path
from typing import Any

from opd_jax.commands import console, study_bill

HELP = 'run a study: cells over seeds, and what they tell about its claims'
EPILOG = """\
FILE is a Python file that sets STUDY. The same command goes on with a study that was interrupted, also by kill -9.
Exit status 1: a run has failed; it is named, those that need it are skipped, and the others are done.

  opd study experiments/studies/science.py --workdir runs/science --jobs 2
  opd study experiments/studies/aopd/paper.py --commands --chip h100 --mfu 0.4
"""
HEAD = (
  'more', 'than', 'measure', 'seeds', 'difference', 'over problems too', 'sd', 'Holm p', 'detectable', 'seeds needed',
  'printed', 'verdict',
)  # fmt: skip


def add_flags(parser: argparse.ArgumentParser) -> None:
  add = parser.add_argument
  add('file', metavar='FILE', help='a Python file that sets STUDY')
  add(
    '--workdir', metavar='DIR', help='runs, and the compilation cache they share; runs/NAME of FILE'
  )
  add(
    '--jobs',
    type=int,
    default=1,
    metavar='N',
    help='runs at a time; several on one accelerator need XLA_PYTHON_CLIENT_PREALLOCATE=false',
  )
  add('--table', action='store_true', help='run nothing; print the table of what is there')
  add(
    '--commands',
    action='store_true',
    help='run nothing; print the command of every run and what it costs',
  )
  add('--chip', default='h100', metavar='NAME', help='whose hours --commands tells; h100')
  add(
    '--mfu',
    type=float,
    default=0.4,
    metavar='X',
    help='share of its peak that --commands reckons with; 0.4',
  )
  add('--skip_preflight', action='store_true', help='of every run')


def run(args: argparse.Namespace) -> int:
  from opd_jax.storage import places
  from opd_jax.studies import folder
  from opd_jax.studies.ledger import Ledger
  from opd_jax.studies.runner import Runner
  from opd_jax.studies.study import read_study

  if args.jobs < 1:
    raise ValueError(f'--jobs must be at least 1, got {args.jobs}.')
  file = Path(args.file).resolve()
  root = places.here_only(args.workdir or f'runs/{file.stem}', '--workdir of study')
  ledger = Ledger(read_study(file), root)
  if args.commands:
    study_bill.show(ledger, file, chip=args.chip, mfu=args.mfu)
    return 0
  if args.table:
    if not (root / folder.RECORD).exists():
      raise ValueError(f'{root} holds no study. Run it first: the same command without --table.')
    folder.check(ledger.study, file, root)
    return _report(ledger)
  with folder.locked(root) as lock, console.progress_bar('study') as bar:
    folder.claim(ledger.study, file, root)
    ledger.forget_failures()
    _print_cost(ledger, args.jobs)
    flags = ('--skip_preflight',) if args.skip_preflight else ()
    runner = Runner(ledger, file, lock=lock, origin=folder.origin(), flags=flags)
    if not runner.run(jobs=args.jobs, say=lambda text: print(text, flush=True), progress=bar):
      raise KeyboardInterrupt
  return _report(ledger)


def _print_cost(ledger: Any, jobs: int) -> None:
  """What is still to be run, and how long that should take."""
  survey, seconds, unknown, rows = ledger.survey(), 0.0, 0, []
  done = [run.cell.name for run in survey.done]
  for cell in ledger.study.cells:
    left = ledger.total()[cell.name] - done.count(cell.name)
    took = ledger.seconds(cell)
    each = sum(took) / len(took) if took else cell.seconds
    unknown += left if each is None else 0
    seconds += left * (each or 0.0)
    by = f'measured, {len(took)} runs' if took else 'stated' if each else ''
    rows.append((cell.name, left, '?' if each is None else f'{each:.0f}', by))
  console.table(('cell', 'runs left', 'seconds each', ''), rows)
  left = sum(row[1] for row in rows)
  rest = f', and {unknown} runs nobody has timed' if unknown else ''
  print(f'{left} runs left: {_duration(seconds / jobs)} with {jobs} at a time{rest}', flush=True)


def _duration(seconds: float) -> str:
  return f'{seconds:.0f} s' if seconds < 120 else f'{seconds / 60:.0f} min'


def _report(ledger: Any) -> int:
  """Names what failed and what was skipped, prints the table, and returns the exit status."""
  failures = ledger.failures()
  for run, why in failures.items():
    print(f'failed   {run}: {why}')
  for name, why in ledger.survey().skipped.items():
    print(f'skipped  {name}: {why}')
  _print(ledger)
  return 1 if failures else 0


def _print(ledger: Any) -> None:
  from opd_jax.studies import folder, verdicts

  print(f'\n{ledger.study.paper}')
  _print_cells(ledger)
  pairs = verdicts.compared(ledger)
  folder.write_atomically(ledger.root / folder.VERDICTS, verdicts.rows_of(pairs))
  if not pairs:
    return
  print('\nComparisons: difference with its 95 % interval; detectable: with 80 % power at 5 %')
  console.table(HEAD, [_comparison(pair) for pair in pairs])
  for source in sorted({_source(printed) for printed in ledger.study.printed}):
    print(f'printed: {source}')
  print()
  claims = [(c, [pair for pair in pairs if pair.contrast == c]) for c in ledger.study.contrasts]
  rows = [
    (contrast.claim, verdicts.verdict_of(own), _number(max(pair.detectable for pair in own)))
    for contrast, own in claims
  ]
  console.table(('claim', 'verdict', 'detectable'), rows)


def _print_cells(ledger: Any) -> None:
  from opd_jax.studies.ledger import Never, NotYet

  study, rows = ledger.study, []
  for cell in study.cells:
    try:
      rate = ledger.rate(cell)
    except (NotYet, Never) as error:
      rows.append((cell.name, '', _tried(ledger, cell), '', str(error)))
      continue
    done = sum(map(ledger.is_done, {ledger.run_of(cell, seed) for seed in study.seeds}))
    shown = [_mean(ledger, cell, measure) for measure in study.measures]
    rows.append((cell.name, _rate(cell, rate), _tried(ledger, cell), done, *shown))
  console.table(('cell', 'rate', 'rates tried', 'runs', *(m.name for m in study.measures)), rows)
  for column, measure in enumerate(study.measures, 4):
    if not any(row[column:] and row[column] for row in rows):
      print(f'{measure.name}: no run so far has {measure.key}')


def _rate(cell: Any, rate: float | None) -> str:
  """The rate, and whether a better one may lie beyond those that were tried."""
  at_end = len(cell.rates) > 2 and rate in (min(cell.rates), max(cell.rates))
  return '' if rate is None else f'{rate:g}' + (' (an end)' if at_end else '')


def _mean(ledger: Any, cell: Any, measure: Any) -> str:
  """Of a measure over seeds; empty where the runs do not have it, e.g. entropy where the student does not write."""
  from opd_jax.studies import statistics, verdicts

  try:
    values = list(verdicts.values_of(ledger, cell, measure).values())
  except ValueError:
    return ''
  if not values:
    return ''
  found = statistics.paired(values if cell.seed is None else values[:1])
  return _interval(found.mean, found.low, found.high)


def _tried(ledger: Any, cell: Any) -> str:
  return ' '.join(f'{rate:g}: {_number(value)}' for rate, value in ledger.tried(cell))


def _comparison(pair: Any) -> tuple[Any, ...]:
  ends = (pair.above, pair.below, pair.measure.name)
  if pair.found is None:
    return (*ends, 0, *([''] * 7), pair.verdict)
  found, smallest = pair.found, pair.measure.smallest
  needed = pair.seeds_needed or '> 10,000'
  return (
    *ends,
    found.n,
    _interval(found.mean, found.low, found.high),
    '' if pair.over_problems is None else ' to '.join(map(_number, pair.over_problems)),
    _number(found.sd),
    f'{pair.holm:.3f}',
    _number(pair.detectable),
    '' if smallest is None or not found.sd > 0 else f'{needed} for {smallest:g}',
    '' if pair.printed is None else '{:+.2f} ± {:.2f}'.format(*pair.printed),
    pair.verdict,
  )


def _source(printed: Any) -> str:
  return (
    f'{printed.measure} as {printed.metric}, {printed.problems} problems x {printed.samples}, '
    f'{printed.scale}, {printed.source}'
  )


def _interval(mean: float, low: float, high: float) -> str:
  half = (high - low) / 2
  return f'{_number(mean)} ± {_number(half)}' if math.isfinite(half) else _number(mean)


def _number(value: float) -> str:
  return '?' if not math.isfinite(value) else f'{value:.3g}'
