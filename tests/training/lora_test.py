"""A run that trains adapters: what is moved, kept, resumed and written; no number of a run without them changes."""

import dataclasses
import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny_runs as runs

from opd_jax import judges
from opd_jax.models import transformer
from opd_jax.models.lora import Lora
from opd_jax.planning import memory
from opd_jax.sharding import mesh_layout
from opd_jax.storage import load, orbax_folder, parameter_names
from opd_jax.storage.fingerprint import fingerprint
from opd_jax.training import loop
from opd_jax.training.state import abstract_state, begin, whole_student

ROOT = Path(__file__).parent.parent.parent
LORA = Lora(rank=4, alpha=8)


def with_lora(folder, lora=LORA, **changes):
  return runs.experiment(folder, lora=lora, **changes)


@pytest.fixture(scope='module')
def undisturbed(tmp_path_factory):
  folder = tmp_path_factory.mktemp('lora')
  return folder, runs.run(with_lora(folder), folder / 'whole')


def paths_of(tree):
  return {jax.tree_util.keystr(path) for path, _ in jax.tree_util.tree_leaves_with_path(tree)}


def test_gradient_and_optimiser_know_adapters_only(undisturbed):
  folder, outcome = undisturbed
  state, began = outcome.state, begin(with_lora(folder), lambda text: None)
  assert all('_lora' in path for path in paths_of(state.params))
  arrays = [x for x in jax.tree.leaves(state.optimiser) if x.ndim]
  assert len(arrays) == 2 * len(jax.tree.leaves(state.params))
  assert fingerprint(state.base) == fingerprint(began[0])
  assert fingerprint(state.params) != fingerprint(began[1])


def test_a_resumed_run_ends_with_the_same_bits(undisturbed, tmp_path):
  folder, whole = undisturbed

  def stop(done, total, text):
    if done in (2, 5):
      raise KeyboardInterrupt

  for _ in range(2):
    with pytest.raises(KeyboardInterrupt):
      runs.run(
        with_lora(folder), tmp_path, listener=loop.Listener(say=lambda t: None, progress=stop)
      )
  assert runs.digest_of(runs.run(with_lora(folder), tmp_path)) == runs.digest_of(whole)
  assert runs.metrics_of(tmp_path) == runs.metrics_of(folder / 'whole')


def test_a_checkpoint_holds_no_base_and_refuses_another(undisturbed, tmp_path):
  folder, _ = undisturbed
  base = folder / 'base'
  save = lambda seed: orbax_folder.save(
    base, runs.CONFIG, transformer.init(runs.CONFIG, mesh_layout(), jax.random.key(seed))
  )
  save(1)
  runs.run(with_lora(folder, weights=str(base)), tmp_path)
  newest = max((tmp_path / 'checkpoints').iterdir())
  texts = [file.read_text(errors='replace') for file in (newest / 'state').glob('_METADATA')]
  assert texts and 'query_lora' in texts[0] and 'embed' not in texts[0]
  shutil.rmtree(base)
  save(2)
  with pytest.raises(ValueError, match=f'{base} has changed since these adapters'):
    runs.run(with_lora(folder, weights=str(base)), tmp_path)


@pytest.mark.parametrize('mesh', [{'fsdp': 8}, {'fsdp': 4, 'tensor': 2}], ids=str)
def test_eight_devices_train_what_one_trains(tmp_path, mesh):
  changes = {'prompts': 8, 'evaluations': ()}
  layout = mesh_layout(**mesh)
  one = runs.run(with_lora(tmp_path, **changes), tmp_path / 'one')
  many = runs.run(with_lora(tmp_path, layout=layout, **changes), tmp_path / 'many')
  assert runs.closeness(many.state.params, one.state.params) < 1e-2
  first, other = (runs.metrics_of(tmp_path / name)[0]['loss'] for name in ('one', 'many'))
  np.testing.assert_allclose(first, other, rtol=1e-5)


def test_earlier_selves_cost_adapters_and_share_the_base(tmp_path):
  """Student, reference and self-teacher: bytes with LoRA against three copies."""
  selves = {
    'teacher': judges.itself(refresh=judges.ema(rate=0.1)),
    'reference': judges.itself(),
  }
  from opd_jax.methods import exopd

  changes = {'judges': selves, 'method': exopd.exopd()}
  held = {}
  for lora in (None, LORA):
    experiment = runs.experiment(tmp_path, distil=changes, lora=lora)
    stage = experiment.stages[1]
    assert {'teacher', 'reference'} == set(stage.asked)
    state = abstract_state(experiment, stage)
    size = lambda tree: sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(tree))
    held[lora] = size(state.params) + size(state.base) + size(state.snapshots)
    counted = memory.held(experiment, stage)
    assert counted.parameters + counted.snapshots == held[lora]
    assert counted.gradient == size(state.params)
  print(f'weights of all roles: {held[LORA]:,} bytes with LoRA, {held[None]:,} without')
  assert held[LORA] < 0.6 * held[None]


def test_metrics_of_geometry_are_those_of_merged_weights(tmp_path):
  experiment = with_lora(tmp_path, geometry=True)
  runs.run(experiment, tmp_path / 'run')
  rows = [row for row in runs.metrics_of(tmp_path / 'run') if 'geometry/rank' in row]
  assert rows and rows[-1]['geometry/sparsity'] < 1 and rows[-1]['geometry/rank'] <= 4 + 1e-6


def test_an_int8_base_is_trained_beside(tmp_path):
  outcome = runs.run(with_lora(tmp_path, dataclasses.replace(LORA, int8=True)), tmp_path / 'run')
  assert outcome.finished and all(
    np.isfinite(row['loss']) for row in runs.metrics_of(tmp_path / 'run') if 'loss' in row
  )
  state = outcome.state
  kinds = {
    path.split('/')[-1]: x.dtype.name for path, x in parameter_names.flat(state.base).items()
  }
  assert kinds['query'] == kinds['down'] == 'int8' and kinds['query_scale'] == 'float32'


def test_weights_of_any_type_may_be_frozen(tmp_path):
  model = dataclasses.replace(runs.CONFIG, param_dtype='bfloat16', dtype='bfloat16')
  experiment = with_lora(tmp_path, model=model)
  outcome = runs.run(experiment, tmp_path / 'run')
  assert {x.dtype.name for x in jax.tree.leaves(outcome.state.base)} == {'bfloat16'}
  assert {x.dtype.name for x in jax.tree.leaves(outcome.state.params)} == {'float32'}
  assert whole_student(experiment, outcome.state)['embed']['table'].dtype == jnp.bfloat16


def test_lora_of_the_model_itself_is_refused(tmp_path):
  with pytest.raises(ValueError, match=r'Bind Experiment\.lora'):
    runs.experiment(tmp_path, model=dataclasses.replace(runs.CONFIG, lora=LORA))
  with pytest.raises(ValueError, match='rank 33 is more than'):
    with_lora(tmp_path, Lora(rank=33))


# --- the command line -----------------------------------------------------------------------------


def opd(*arguments, cwd):
  environment = {**os.environ, 'PYTHONPATH': str(ROOT)}
  return subprocess.run(
    [sys.executable, '-m', 'opd_jax.cli', *map(str, arguments)],
    env=environment, cwd=cwd, capture_output=True, text=True, timeout=600,
  )  # fmt: skip


def flags(teacher, *, interrupted=False):
  files = ('models/small', 'data/sums', 'methods/opd', 'judges/teacher', 'models/lora')
  bindings = [
    f'TEACHER = "{teacher}"', 'STEPS = 10', 'PROMPTS = 16', 'presets.tiny.width = 64', 'lora.Lora.rank = 8',
    'lora.Lora.alpha = 16', 'RATE = 1e-2', 'experiment.Experiment.checkpoint_every = 3',
    'evaluator.Evaluation.problems = 8', 'evaluator.Evaluation.every = 10', 'BUDGET = 16',
    'experiment.Stage.whole_diagnosis = True',
  ]  # fmt: skip
  listed = [x for file in files for x in ('--gin_file', ROOT / 'experiments' / f'{file}.gin')]
  return [*listed, *[x for each in bindings for x in ('--gin_bindings', each)], '--skip_preflight']


def test_a_run_from_gin_learns_and_survives_a_kill(tmp_path):
  config = runs.presets.tiny(width=64, num_layers=2, mlp_width=256, vocab_size=64)
  params = transformer.init(config, mesh_layout(), jax.random.key(1))
  orbax_folder.save(tmp_path / 'teacher', config, params, strings=None)
  done = opd('train', *flags(tmp_path / 'teacher'), '--workdir', tmp_path / 'a', cwd=tmp_path)
  assert done.returncode == 0, done.stderr
  assert 'of them are trained; Lora(rank=8' in done.stdout
  rows = runs.metrics_of(tmp_path / 'a')
  kl = [row['teacher/reverse_kl'] for row in rows if 'teacher/reverse_kl' in row]
  assert np.mean(kl[-3:]) < 0.9 * np.mean(kl[:3]), kl
  # Killed without a word after the first checkpoint, then run to the end.
  process = subprocess.Popen(
    [sys.executable, '-m', 'opd_jax.cli', 'train', *map(str, flags(tmp_path / 'teacher')), '--workdir', tmp_path / 'b'],
    env={**os.environ, 'PYTHONPATH': str(ROOT)}, cwd=tmp_path, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
  )  # fmt: skip
  while process.poll() is None and not (tmp_path / 'b' / 'checkpoints' / 'step_3').exists():
    time.sleep(0.01)
  assert process.poll() is None
  process.kill()
  process.wait()
  done = opd('train', *flags(tmp_path / 'teacher'), '--workdir', tmp_path / 'b', cwd=tmp_path)
  assert done.returncode == 0 and 'resumed at step' in done.stdout, done.stderr
  students = [load.model(str(tmp_path / name / 'student'), mesh_layout()).params for name in 'ab']
  assert fingerprint(students[0]) == fingerprint(students[1])
  assert runs.metrics_of(tmp_path / 'b') == rows
  done = opd('export', tmp_path / 'a', tmp_path / 'peft', '--peft', cwd=tmp_path)
  assert done.returncode == 0, done.stderr
  settings = json.loads((tmp_path / 'peft' / 'adapter_config.json').read_text())
  assert (settings['r'], settings['lora_alpha'], settings['peft_type']) == (8, 16, 'LORA')
