"""Every gin file of the house builds, and every binding in it is read."""

from pathlib import Path

import pytest

from opd_jax import cli

ROOT = Path(__file__).parent.parent / 'experiments'
TINY, SUMS, OPD, TEACHER = (
  str(ROOT / name)
  for name in ('models/tiny.gin', 'data/sums.gin', 'methods/opd.gin', 'judges/teacher.gin')
)
FILES = pytest.mark.parametrize(
  'file', sorted(ROOT.rglob('*.gin')), ids=lambda file: str(file.relative_to(ROOT))
)


@FILES
def test_every_gin_file_builds_without_a_dead_binding(file):
  if file.parent.name in ('models', 'layouts') or file.name == 'base.gin':
    files, bindings = [TINY, str(file)] if file.parent.name != 'models' else [str(file)], []
  else:
    others = [SUMS, TEACHER] + ([] if file.parent.name == 'methods' else [OPD])
    files, bindings = [TINY, *dict.fromkeys([*others, str(file)])], ['TEACHER = "tiny"']
  experiment, operative = cli.build(files, bindings)
  assert experiment.model.num_layers and 'experiment.Experiment.model' in operative
  assert bool(experiment.stages) == bool(bindings)


@pytest.mark.parametrize(
  'file', sorted(file for file in ROOT.rglob('*.gin') if file.parent.name in ('models', 'methods', 'data', 'judges')),
  ids=lambda file: str(file.relative_to(ROOT)),
)  # fmt: skip
def test_every_gin_file_begins_with_what_it_is_and_how_to_run_it(file):
  first, *rest = file.read_text().splitlines()
  assert first.startswith('# ') and any(line.startswith('# Command  opd ') for line in rest)
