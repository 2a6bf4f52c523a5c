"""A disk that runs full in the middle of a run, for real: one line, and the run goes on where there is room again."""

import subprocess
import sys
from pathlib import Path

import pytest
import tiny_runs as runs

ROOT = Path(__file__).parents[2]
FILL = """
import os, sys
import jax
jax.config.update('jax_num_cpu_devices', 1)
from opd_jax import cli
from opd_jax.training import checkpoints, recorder

where, what, *words = sys.argv[1:]

def fill():
  with open(where + '/filler', 'wb', buffering=0) as stream:
    try:
      while True:
        stream.write(bytes(512))
    except OSError:
      pass

def before(owner, name, step_of):
  known = getattr(owner, name)
  def filled(self, *arguments, **options):
    if step_of(arguments, options) == 4:
      fill()
    return known(self, *arguments, **options)
  setattr(owner, name, filled)

if what == 'metrics':
  before(recorder.Recorder, 'row', lambda arguments, _: arguments[0].get('step'))
elif what == 'checkpoint':
  before(checkpoints.Checkpointer, 'save', lambda arguments, _: int(arguments[1].step))
sys.exit(cli.main(words))
"""
# In a namespace of its own anybody may mount a disk of 16 MiB.
MOUNTED = ('unshare', '--user', '--map-root-user', '--mount', 'sh', '-c')


def can_mount(folder: Path) -> bool:
  try:
    done = subprocess.run([*MOUNTED, f'mount -t tmpfs tmpfs {folder}'], capture_output=True)
  except FileNotFoundError:
    return False
  return done.returncode == 0


@pytest.mark.parametrize('what', ['metrics', 'checkpoint'])
def test_a_disk_that_runs_full_is_told_in_one_line_and_the_run_goes_on(tmp_path, what):
  disk = tmp_path / 'disk'
  disk.mkdir()
  if not can_mount(disk):
    pytest.skip('this machine lets nobody mount a disk of their own')
  (tmp_path / 'fill.py').write_text(FILL)
  files = [f'--gin_file={ROOT}/experiments/{n}.gin' for n in ('models/tiny', 'data/sums', 'methods/sft')]  # fmt: skip
  bound = ['STEPS = 6', 'PROMPTS = 4', 'evaluator.Evaluation.problems = 2']
  bound += ['experiment.Experiment.checkpoint_every = 2', 'experiment.Experiment.samples_every = 1']
  words = [*files, *(f'--gin_bindings={binding}' for binding in bound)]
  command = lambda what, home: (
    f'{sys.executable} {tmp_path}/fill.py {disk} {what} train {" ".join(map(repr, words))} --workdir {home}'
  )
  script = f"""
    mount -t tmpfs -o size=16m tmpfs {disk}
    {command(what, disk / 'run')} 2> {tmp_path}/said; echo $?
    rm {disk}/filler
    {command('nothing', disk / 'run')} > {tmp_path}/resumed; echo $?
    {command('nothing', tmp_path / 'still')} > /dev/null; echo $?
    cp {disk}/run/*.jsonl {tmp_path}
  """
  done = subprocess.run([*MOUNTED, script], capture_output=True, text=True, timeout=400)
  said = (tmp_path / 'said').read_text()
  statuses = [line for line in done.stdout.splitlines() if line.isdigit()]
  assert statuses == ['2', '0', '0'], (done.stderr[-2000:], said)
  assert said.splitlines()[-1].startswith('opd train: the disk is full'), said
  assert 'Traceback' not in said
  assert 'resumed at step' in (tmp_path / 'resumed').read_text()
  for name in ('metrics.jsonl', 'samples.jsonl', 'outcomes.jsonl'):
    one, other = (
      runs.rows_of((folder / name).read_text()) for folder in (tmp_path, tmp_path / 'still')
    )
    assert one == other, name
