"""How weights moved: known changes have known numbers, and a run reports them."""

import dataclasses
import json

import jax
import numpy as np
import tiny_runs as runs

from opd_jax import cli
from opd_jax.evaluation import geometry
from opd_jax.models import transformer
from opd_jax.sharding import mesh_layout
from opd_jax.storage import orbax_folder

RNG = np.random.RandomState(0)
MATRIX = RNG.randn(24, 16)


def test_nothing_has_moved():
  change = geometry.change_of(MATRIX, MATRIX, rank=4)
  assert change.sparsity == 1.0 and change.spectrum == 0.0 and change.rotation < 1e-3
  assert change.rank is change.small is change.principal is None


def test_a_change_below_what_bfloat16_holds_is_none():
  assert geometry.change_of(MATRIX, MATRIX * (1 + 1e-5), rank=4).sparsity > 0.99


def test_a_larger_matrix_has_turned_nowhere_and_its_spectrum_has_grown():
  change = geometry.change_of(MATRIX, 2 * MATRIX, rank=4)  # exact in bfloat16
  assert change.sparsity == 0.0 and abs(change.spectrum - 1) < 1e-12 and change.rotation < 1e-3
  assert abs(change.small - 0.5) < 0.01 and abs(change.principal - 0.5) < 0.01


def test_the_stable_rank_is_that_of_the_update():
  u, _, v = np.linalg.svd(RNG.randn(24, 16), full_matrices=False)
  for rank in (1, 3):
    update = 8 * u[:, :rank] @ v[:rank]
    got = geometry.change_of(np.zeros((24, 16)) + 1e-3, 1e-3 + update, rank=2).rank
    assert abs(got - rank) < 0.05


def test_small_entries_that_moved_are_seen():
  smallest = np.abs(MATRIX) < np.quantile(np.abs(MATRIX), 0.3)
  change = geometry.change_of(MATRIX, np.where(smallest, MATRIX + 0.5, MATRIX), rank=4)
  assert change.small == 1.0 and abs(change.sparsity - 0.7) < 0.01


def test_a_quarter_turn_is_ninety_degrees():
  one, other = np.zeros((2, 4, 4))
  one[0, 0], other[1, 1] = 1.0, 1.0
  assert abs(geometry.change_of(one, other, rank=1).rotation - 90) < 1e-6


def test_the_command_and_a_run_tell_the_same(tmp_path, capsys):
  experiment = runs.experiment(tmp_path, geometry=True)
  experiment = dataclasses.replace(experiment, stages=experiment.stages[:1])
  outcome = runs.run(experiment, tmp_path / 'run')
  rows = [row for row in runs.metrics_of(tmp_path / 'run') if 'geometry/sparsity' in row]
  assert rows[0]['geometry/sparsity'] == 1.0 and rows[-1]['geometry/sparsity'] < 0.9
  first = transformer.init(runs.CONFIG, mesh_layout(), jax.random.key(0))
  for name, params in (('first', first), ('last', outcome.state.params)):
    orbax_folder.save(tmp_path / name, runs.CONFIG, params)
  assert cli.main(['geometry', str(tmp_path / 'first'), str(tmp_path / 'last'), '--json']) == 0
  told = json.loads(capsys.readouterr().out)
  assert {f'geometry/{name}': value for name, value in told['mean'].items()} == {
    name: value for name, value in rows[-1].items() if name.startswith('geometry/')
  }
  assert len(told['matrices']) == 7
