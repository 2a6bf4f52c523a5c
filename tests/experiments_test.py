"""Every gin file of the house builds, and every binding in it is read."""

from pathlib import Path

import pytest

from opd_jax import cli

ROOT = Path(__file__).parent.parent / 'experiments'
TINY = str(ROOT / 'models' / 'tiny.gin')


@pytest.mark.parametrize('file', sorted(ROOT.rglob('*.gin')), ids=lambda file: str(file.relative_to(ROOT)))
def test_every_gin_file_builds_without_a_dead_binding(file):
  files = [str(file)] if file.parent.name == 'models' else [TINY, str(file)]
  experiment, operative = cli.build(files, [])
  assert experiment.model.num_layers and 'experiment.Experiment.model' in operative


@pytest.mark.parametrize('file', sorted((ROOT / 'models').glob('*.gin')), ids=lambda file: file.name)
def test_every_gin_file_begins_with_what_it_is_and_how_to_run_it(file):
  first, *rest = file.read_text().splitlines()
  assert first.startswith('# ') and any(line.startswith('# Command  opd ') for line in rest)
