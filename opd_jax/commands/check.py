"""Floor 6. `opd check`: opens everything that an experiment names, before anything is trained."""

import argparse
from collections.abc import Sequence
from typing import Any

from opd_jax.commands import console, flags

HELP = 'open everything that an experiment names, every row once, and list all mistakes'
EPILOG = (
  flags.GIN
  + """\
  opd check --gin_file experiments/models/small.gin --gin_file experiments/data/sums.gin \\
            --gin_file experiments/methods/sft.gin --workdir runs/sft

`opd train` looks at the same before step 0. Weights are not loaded: their files, shapes and settings are read.
"""
)
WIDTH = 80


def add_flags(parser: argparse.ArgumentParser) -> None:
  flags.add_gin(parser)
  parser.add_argument(
    '--workdir', metavar='DIR', help='where the run will be; looks at its disk, writes nothing'
  )


def run(args: argparse.Namespace) -> None:
  from opd_jax.configuration import build
  from opd_jax.storage.places import place

  experiment, _ = build(args.gin_file, args.gin_bindings, flags.trust_of(args))
  look(experiment, None if args.workdir is None else place(args.workdir))


def look(experiment: Any, workdir: Any) -> None:
  """Shows what there is, and refuses all mistakes at once."""
  from opd_jax.training import inspection

  inspection.check_startable(experiment)
  with console.RunLine('check') as line:
    findings = inspection.inspect(experiment, workdir=workdir, status=line.status)
  show(findings)
  inspection.refuse(findings)
  for warning in inspection.warnings_of(experiment):
    print(f'warning: {warning}')
  print('nothing was found that would stop this run')


def show(findings: Sequence[Any]) -> None:
  """A table of what was opened."""
  rows, before = [], ''
  for finding in findings:
    rows.append((finding.where if finding.where != before else '', finding.what, finding.seen))
    before = finding.where
  console.table(('where', 'what', 'seen'), rows, width=WIDTH)
