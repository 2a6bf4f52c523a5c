"""Several processes load one published model: each reads its share of the bytes, and together they hold the whole."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from conftest import FAMILIES

from opd_jax.storage import huggingface, orbax_folder

WORKER = """
import sys
from pathlib import Path
import jax

number, port, folder, count = int(sys.argv[1]), sys.argv[2], Path(sys.argv[3]), int(sys.argv[4])
jax.config.update('jax_platforms', 'cpu')
jax.config.update('jax_num_cpu_devices', 4 // count)
jax.config.update('jax_cpu_collectives_implementation', 'gloo')
jax.distributed.initialize(f'localhost:{port}', num_processes=count, process_id=number)
from opd_jax.sharding import mesh_layout
from opd_jax.storage import huggingface, orbax_folder, safetensors

read = []
fromfile = safetensors.np.fromfile
def counted(*words, **named):
  array = fromfile(*words, **named)
  read.append(array.nbytes)
  return array

safetensors.np.fromfile = counted
own = tuple(jax.devices()[int(sys.argv[5]):])
layout = mesh_layout(fsdp=len(own) // 2, tensor=2, devices=own)
config, params = huggingface.load(folder / 'model', layout, param_dtype='float32')
safetensors.np.fromfile = fromfile
orbax_folder.save(folder / f'by_{count}', config, params)
print('read', sum(read))
"""


def free_port() -> int:
  with socket.socket() as probe:
    probe.bind(('localhost', 0))
    return probe.getsockname()[1]


@pytest.mark.parametrize('name', ['qwen3', 'qwen3_moe'])
@pytest.mark.parametrize(('count', 'owners'), [(2, 2), (4, 4), (2, 1)])
def test_every_process_reads_its_share_and_no_more(
  tmp_path, single, params_of, name, count, owners
):
  """One in `owners` of the bytes, up to a row of each tensor; parameters are the same bits.

  With fewer owners than processes the model lies on devices of the last ones only, as a judge apart may.
  """
  config = FAMILIES[name]()
  huggingface.save(tmp_path / 'model', config, single, params_of(config), dtype='bfloat16')
  port, path, first = str(free_port()), str(Path(__file__).parents[2]), str(4 - 4 * owners // count)
  workers = [
    subprocess.Popen(
      [sys.executable, '-c', WORKER, str(number), port, str(tmp_path), str(count), first],
      stdout=subprocess.PIPE,
      stderr=subprocess.STDOUT,
      text=True,
      env={**os.environ, 'PYTHONPATH': path},
    )
    for number in range(count)
  ]
  try:
    said = [worker.communicate(timeout=240)[0] for worker in workers]
  finally:
    for worker in workers:
      worker.kill()
      worker.communicate()
  assert [worker.returncode for worker in workers] == [0] * count, '\n'.join(said)[-3000:]
  read = [int(each.rpartition('read ')[2]) for each in said]
  tensors = huggingface.tensors_of(tmp_path / 'model').values()
  whole = sum(int(np.prod(each.shape)) * 2 for each in tensors)
  assert sum(read) == whole
  row = sum(4 * 2 * int(np.prod(each.shape[1:])) for each in tensors)  # of four devices, at most
  assert max(read) <= whole / owners + row
  want = huggingface.load(tmp_path / 'model', single, param_dtype='float32')[1]
  got = orbax_folder.load(tmp_path / f'by_{count}', single)[1]
  jax.tree.map(np.testing.assert_array_equal, got, want)
