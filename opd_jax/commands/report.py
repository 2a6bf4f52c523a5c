"""Floor 6. `opd report`: runs and studies as one HTML file."""

import argparse

HELP = (
  'runs and studies as one HTML file: curves, verdicts, and every recorded response token by token'
)
EPILOG = """\
  opd report runs/opd                              writes runs/opd/report.html
  opd report runs/opd runs/aopd --out both.html    curves over each other, responses side by side

The file needs no network and no other file. A run that is still going on is shown as far as it is. Which responses are
kept is said by experiment.Experiment.rollouts.
"""


def add_flags(parser: argparse.ArgumentParser) -> None:
  parser.add_argument('folders', nargs='+', metavar='DIR', help='of `opd train` or `opd study`')
  parser.add_argument('--out', metavar='FILE', help='default: report.html in the first DIR')
  parser.add_argument('--title', metavar='TEXT', help='default: the names of the runs')


def run(args: argparse.Namespace) -> None:
  from opd_jax.report import folders
  from opd_jax.report.page import page
  from opd_jax.storage.places import place

  given = [place(folder) for folder in args.folders]
  runs, studies = folders.read(given)
  out = place(args.out) if args.out is not None else given[0] / 'report.html'
  names = [*(study.title for study in studies), *(run.name for run in runs)]
  title = args.title if args.title is not None else ', '.join(names[:4])
  text = page(runs, studies, title=title)
  out.write_bytes(text.encode())
  count = sum(recorded.rows for run in runs for recorded in run.recorded)
  print(
    f'{out}: {len(runs)} runs, {len(studies)} studies, {count:,} responses, {len(text) / 1e6:.1f} MB'
  )
