"""A run in a bucket that knows whole objects only: killed, resumed, reported and begun from, through real clients."""

import json
import os
import re
import signal
import subprocess
import sys
import threading
from pathlib import Path

import fake_bucket
import numpy as np
import pytest
import tiny_runs as runs

from opd_jax import cli
from opd_jax.sharding import mesh_layout
from opd_jax.storage import lease, load, orbax_folder, places
from opd_jax.storage.fingerprint import digest
from opd_jax.storage.places import place
from opd_jax.training import workdir
from opd_jax.training.recorder import Recorder

pytest.importorskip('gcsfs')
pytestmark = pytest.mark.filterwarnings('default')  # of clients that are not ours

TRAIN = """
import os, signal, sys
import jax
jax.config.update('jax_num_cpu_devices', 1)
from pathlib import Path
import tiny_runs as runs
from opd_jax.commands import train
from opd_jax.storage.places import place
from opd_jax.training.recorder import Recorder

folder, at, last = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])
row = Recorder.row
def cut(self, values):
  row(self, values)
  if values['step'] == last and 'loss' in values:
    os.kill(os.getpid(), signal.SIGKILL)

Recorder.row = cut
raise SystemExit(train.train(runs.experiment(folder), '', workdir=place(at), skip_preflight=True))
"""


@pytest.fixture(scope='module')
def bucket():
  with fake_bucket.Bucket() as server:
    before = dict(os.environ)
    os.environ.update(server.environment)
    yield server
    os.environ.clear()
    os.environ.update(before)


def train(folder: Path, at: str, *, last: int) -> subprocess.CompletedProcess:
  path = [str(Path(__file__).parents[1]), str(Path(__file__).parents[2])]
  path += [os.environ['PYTHONPATH']] if 'PYTHONPATH' in os.environ else []
  return subprocess.run(
    [sys.executable, '-c', TRAIN, str(folder), at, str(last)],
    capture_output=True,
    text=True,
    env={**os.environ, 'PYTHONPATH': os.pathsep.join(path)},
    timeout=400,
  )


def rows_of(bucket: fake_bucket.Bucket, name: str) -> list[dict]:
  return runs.rows_of(bucket.objects[name][0].decode())


def test_a_run_in_a_bucket_is_killed_resumed_reported_and_begun_from(tmp_path, bucket, capsys):
  runs.teacher_folder(tmp_path)
  killed = train(tmp_path, 'gs://bucket/run', last=5)
  assert killed.returncode == -signal.SIGKILL, killed.stderr[-3000:]
  assert rows_of(bucket, 'run/metrics.jsonl')[-1]['step'] == 4  # sent before the checkpoint
  assert 'run/.lock' in bucket.objects  # nobody gave it back
  again = train(tmp_path, 'gs://bucket/run', last=-1)
  assert again.returncode == 0, again.stderr[-3000:]
  # 3, where the checkpoint of step 4 was being written when the kill came
  assert re.search('resumed at step [34] of 6', again.stdout), again.stdout
  still = train(tmp_path, str(tmp_path / 'here'), last=-1)
  assert still.returncode == 0, still.stderr[-3000:]

  for file in ('metrics.jsonl', 'samples.jsonl', 'outcomes.jsonl', 'rollouts.jsonl'):
    local = runs.rows_of((tmp_path / 'here' / file).read_text())
    assert rows_of(bucket, f'run/{file}') == local, file
  known = {name.split('/')[1] for name in bucket.objects if name.startswith('run/')}
  assert {'checkpoints', 'config.gin', 'student', 'tensorboard'} <= known
  assert 'run/.lock' not in bucket.objects

  one, two = (load.model(f'{at}/student', mesh_layout()) for at in ('gs://bucket/run', tmp_path / 'here'))  # fmt: skip
  assert digest(one.params) == digest(two.params) and one.config == two.config
  assert cli.main(['report', 'gs://bucket/run']) == 0
  assert b'gs://bucket/run' in bucket.objects['run/report.html'][0]
  assert 'gs://bucket/run/report.html: 1 runs' in capsys.readouterr().out
  assert not bucket.refused, 'somebody wanted to rename, to copy or to append'


def test_an_evaluation_in_a_bucket_goes_on_where_it_was_cut(tmp_path, bucket):
  (tmp_path / 'sums.jsonl').write_text(json.dumps({'problem': '1 + 1?', 'answer': '2'}) + '\n')
  file = Path(__file__).parents[2] / 'experiments/evaluations/aime24.gin'
  bound = [f'evaluator.Evaluation.{each}' for each in ('samples = 2', 'budget = 4', 'problems = 1')]
  bound.append(f"PROBLEMS = '{tmp_path}/sums.jsonl'")
  flags = [word for each in bound for word in ('--gin_bindings', each)]
  words = ['evaluate', 'tiny', '--gin_file', str(file), *flags, '--workdir', 'gs://bucket/asked']
  assert cli.main(words) == 0
  whole = bucket.objects['asked/outcomes.jsonl'][0]
  assert len(whole.splitlines()) == 2 and 'asked/results.json' in bucket.objects
  bucket.put('asked/outcomes.jsonl', whole[:-20], None)
  assert cli.main(words) == 0
  assert bucket.objects['asked/outcomes.jsonl'][0] == whole
  assert not bucket.refused


def test_what_needs_a_rename_or_an_append_fails_here(bucket):
  """So the tests above cannot pass with code that needs one."""
  file = place('gs://bucket/plain.txt')
  file.write_text('once')
  with pytest.raises(Exception):  # noqa: B017 - of whatever type the client chooses
    file.rename(place('gs://bucket/other.txt'))
  assert bucket.refused and 'other.txt' not in bucket.objects
  bucket.refused.clear()


def test_a_model_is_there_when_all_of_it_is(tmp_path, bucket, single, params_of, monkeypatch):
  config = runs.CONFIG
  place_of = place('gs://bucket/model')

  def fails(*_):
    raise OSError('the network is gone')

  with monkeypatch.context() as patched:
    patched.setattr(orbax_folder.atomic_folder, 'copy_companions', fails)
    with pytest.raises(OSError, match='the network is gone'):
      orbax_folder.save(place_of, config, params_of(config), strings=['a'] * config.vocab_size)
  assert not [name for name in bucket.objects if name.startswith('model/')]
  orbax_folder.save(place_of, config, params_of(config), strings=['a'] * config.vocab_size)
  with pytest.raises(ValueError, match='exists and is not empty'):
    orbax_folder.save(place_of, config, params_of(config))
  loaded = load.model('gs://bucket/model', single)
  for one, other in zip(
    *map(runs.jax.tree.leaves, (loaded.params, params_of(config))), strict=True
  ):
    np.testing.assert_array_equal(one, other)


def test_one_run_in_a_bucket(bucket, monkeypatch):
  """A second one is refused while the first gives signs of life, and takes over from one that was killed."""
  monkeypatch.setattr(lease, 'BEAT', 0.2)
  monkeypatch.setattr(lease, 'PATIENCE', 2.0)
  home, said = place('gs://bucket/busy'), []
  with (
    workdir.locked(home),
    pytest.raises(ValueError, match=r'another run is at work in gs://bucket/busy: process \d+'),
    workdir.locked(home),
  ):
    pass
  assert 'busy/.lock' not in bucket.objects
  gone = {
    'owner': 'process 1 on elsewhere',
    'id': 'x',
    'host': 'elsewhere',
    'process': 1,
    'beat': 3,
  }
  bucket.put('busy/.lock', json.dumps(gone).encode(), None)
  lease.Lease(home / '.lock', '{owner}', said.append).close()
  assert said == [
    'gs://bucket/busy/.lock is of process 1 on elsewhere; waiting 2 s for a sign of life',
    'gs://bucket/busy was left behind by process 1 on elsewhere; it is taken over',
  ]
  assert 'busy/.lock' not in bucket.objects


def test_of_several_who_create_one_wins(bucket):
  file, won = place('gs://bucket/first'), []
  threads = [
    threading.Thread(target=lambda n=n: won.append(n) if places.create(file, str(n)) else None)
    for n in range(4)
  ]
  for thread in threads:
    thread.start()
  for thread in threads:
    thread.join()
  assert len(won) == 1 and file.read_text() == str(won[0])


def test_a_spool_sends_what_has_changed_and_nothing_else(tmp_path, bucket):
  home = place('gs://bucket/spool')
  with places.spooled(home) as spool:
    (spool.folder / 'a').write_text('1')
    (spool.folder / 'deep').mkdir()
    (spool.folder / 'deep' / 'b').write_text('2')
    spool.send()
    generation = bucket.objects['spool/deep/b'][1]
    with open(spool.folder / 'a', 'a') as stream:
      stream.write('1')
    spool.send()
    assert bucket.objects['spool/a'][0] == b'11'
    assert bucket.objects['spool/deep/b'][1] == generation
  assert not spool.folder.exists()
  with places.spooled(tmp_path) as here:
    assert here.folder == tmp_path
  assert tmp_path.exists()


def test_places_that_are_not_known_are_refused(monkeypatch):
  with pytest.raises(ValueError, match=r's3://x: of buckets only gs://… is known here'):
    place('s3://x')
  monkeypatch.setattr(places.importlib.util, 'find_spec', lambda name: None)
  with pytest.raises(ValueError, match=r'gs://x: buckets need gcsfs\. pip install'):
    place('gs://x')


def test_a_name_at_wandb_is_that_of_the_bucket_and_not_of_the_spool(tmp_path, bucket):
  from opd_jax.training.recorder import _name_of

  assert _name_of(place('gs://bucket/a/run')).startswith('run-')
  assert _name_of(place('gs://bucket/a/run')) != _name_of(place('gs://bucket/b/run'))
  assert (
    Recorder(tmp_path, begin=-1, is_writer=False, home=place('gs://bucket/a/run')).folder
    == tmp_path
  )
