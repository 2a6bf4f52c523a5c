"""Floor 6. `opd export`: the student of a finished run, for transformers."""

import argparse
from pathlib import Path

from opd_jax.commands import flags
from opd_jax.commands.convert import convert
from opd_jax.commands.train import ADAPTER, STUDENT

HELP = 'the student of a finished run, as a folder for transformers or for peft'
EPILOG = '  opd export runs/opd exported\n'


def add_flags(parser: argparse.ArgumentParser) -> None:
  parser.add_argument('src', metavar='WORKDIR', help='of `opd train`')
  parser.add_argument('dst', metavar='DST', help='folder to make')
  parser.add_argument(
    '--peft',
    action='store_true',
    help='only the adapters of a run with LoRA, in the format of peft; its weights stay where they are',
  )
  flags.add_stored_dtype(parser)


def run(args: argparse.Namespace) -> None:
  from opd_jax.storage import places

  source = places.here_only(args.src, 'export from')
  destination = places.here_only(args.dst, 'export to')
  student = source / STUDENT
  if not student.is_dir():
    raise ValueError(
      f'{student} is not there: {args.src} is no --workdir of a finished `opd train`. '
      'Run the same command again to finish it.'
    )
  if args.peft:
    _export_adapter(source, destination, dtype=args.dtype)
  else:
    convert(str(student), destination, dtype=args.dtype)


def _export_adapter(workdir: Path, destination: Path, *, dtype: str | None) -> None:
  """Copies the adapters that a run wrote beside its student."""
  from opd_jax.storage import peft

  if not (workdir / ADAPTER).is_dir():
    raise ValueError(
      f'{workdir / ADAPTER} is not there: the run in {workdir} trained every parameter. Export it without --peft, or '
      'train it with experiments/models/lora.gin.'
    )
  tensors = peft.copy(workdir / ADAPTER, destination, dtype=dtype)
  print(f'{destination}: {tensors} tensors of adapters, a folder for peft')
