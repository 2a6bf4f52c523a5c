"""Floor 6. `opd export`: the student of a finished run, for transformers."""

import argparse
from pathlib import Path

from opd_jax.commands import flags
from opd_jax.commands.convert import convert
from opd_jax.commands.train import STUDENT

HELP = 'the student of a finished run, as a folder for transformers'
EPILOG = '  opd export runs/opd exported\n'


def add_flags(parser: argparse.ArgumentParser) -> None:
  parser.add_argument('src', metavar='WORKDIR', help='of `opd train`')
  parser.add_argument('dst', metavar='DST', help='folder to make')
  flags.add_stored_dtype(parser)


def run(args: argparse.Namespace) -> None:
  student = Path(args.src) / STUDENT
  if not student.is_dir():
    raise ValueError(
      f'{student} is not there: {args.src} is no --workdir of a finished `opd train`. '
      'Run the same command again to finish it.'
    )
  convert(str(student), Path(args.dst), dtype=args.dtype)
