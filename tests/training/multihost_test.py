"""Two real processes over gloo make one run: the same numbers as one process with as many devices, and it resumes."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import tiny_runs as runs

from opd_jax.sharding import mesh_layout

WORKER = """
import sys
import jax

number, port, folder, stop = int(sys.argv[1]), sys.argv[2], sys.argv[3], int(sys.argv[4])
jax.config.update('jax_platforms', 'cpu')
jax.config.update('jax_num_cpu_devices', 2)
jax.config.update('jax_cpu_collectives_implementation', 'gloo')
jax.distributed.initialize(f'localhost:{port}', num_processes=2, process_id=number)
import signal
from pathlib import Path
import tiny_runs as runs
from opd_jax.sharding import mesh_layout
from opd_jax.training import loop

def look(done, total, text):
  if done == stop and number == 1:  # one process only: the other must agree to stop
    signal.raise_signal(signal.SIGTERM)

folder = Path(folder)
experiment = runs.experiment(folder, prompts=8, layout=mesh_layout(fsdp=2, tensor=2))
listener = loop.Listener(say=lambda text: None, progress=look)
outcome = runs.run(experiment, folder / 'two', listener=listener, skip_preflight=False)
assert outcome.finished == (stop < 0), outcome.position
"""


def free_port() -> int:
  with socket.socket() as probe:
    probe.bind(('localhost', 0))
    return probe.getsockname()[1]


def two(folder: Path, *, stop: int) -> None:
  arguments = str(free_port()), str(folder), str(stop)
  command = [sys.executable, '-c', WORKER]
  cache = {
    'JAX_COMPILATION_CACHE_DIR': str(folder / 'cache'),
    'JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS': '0',
  }
  path = {'PYTHONPATH': f'{Path(__file__).parent.parent}:{Path(__file__).parent.parent.parent}'}
  workers = [
    subprocess.Popen(
      [*command, str(number), *arguments], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
      env={**os.environ, **path, **cache},
    )
    for number in range(2)
  ]  # fmt: skip
  try:
    outputs = [worker.communicate(timeout=240)[0] for worker in workers]
  finally:
    for worker in workers:
      worker.kill()
      worker.communicate()
  assert [worker.returncode for worker in workers] == [0, 0], '\n'.join(outputs)[-6000:]


def test_two_processes_run_as_one_does_and_stop_together(tmp_path):
  runs.teacher_folder(tmp_path)
  two(tmp_path, stop=4)
  assert [row['step'] for row in runs.metrics_of(tmp_path / 'two') if 'loss' in row] == [1, 2, 3, 4]
  two(tmp_path, stop=-1)
  runs.run(
    runs.experiment(tmp_path, prompts=8, layout=mesh_layout(fsdp=2, tensor=2)), tmp_path / 'one'
  )
  rows = [
    [row for row in runs.metrics_of(tmp_path / name) if 'loss' in row] for name in ('two', 'one')
  ]
  assert len(rows[0]) == len(rows[1]) == 6
  for what in ('loss', 'grad_norm', 'entropy', 'length', 'tokens'):
    np.testing.assert_allclose(
      *([row[what] for row in part] for part in rows), rtol=1e-4, err_msg=what
    )
