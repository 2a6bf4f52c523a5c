"""`opd study` with workers that train nothing: python stub_study.py SECONDS FILE --workdir DIR …"""

import sys
from pathlib import Path

from opd_jax import cli
from opd_jax.studies import folder
from opd_jax.studies.runner import Runner

WORKER = [sys.executable, str(Path(__file__).parent / 'stub_worker.py')]


def value_of(run) -> float:
  """Seeds and cells differ; the higher of two rates is better, and a rate of 1 fails."""
  number = 0.1 * len(run.cell.name) + 0.01 * run.seed + 0.001 * run.seed * len(run.cell.name)
  return -1.0 if run.rate == 1 else number + (run.rate or 0.0)


def stubbed(seconds: float):
  """The command of a run of a stub worker, in place of the training command."""

  def command(self, run):
    self.ledger.students(run)
    words = (self.ledger.folder(run), value_of(run), 5, seconds)
    return ['opd', 'train', *map(str, words)]

  return command


if __name__ == '__main__':
  Runner.command, Runner.worker = stubbed(float(sys.argv[1])), WORKER
  folder.origin = lambda: {'device': 'none'}
  sys.exit(cli.main(['study', *sys.argv[2:]]))
