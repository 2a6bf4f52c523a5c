"""Two real processes over gloo: a checkpoint enters, a forward pass runs, and it leaves, all across hosts."""

import socket
import subprocess
import sys

import jax
import numpy as np

from opd_jax.models import presets, transformer
from opd_jax.storage import huggingface, orbax_folder

WORKER = """
import sys
import jax
import numpy as np

number, port, folder = int(sys.argv[1]), sys.argv[2], sys.argv[3]
jax.config.update('jax_platforms', 'cpu')
jax.config.update('jax_num_cpu_devices', 2)
jax.config.update('jax_cpu_collectives_implementation', 'gloo')
jax.distributed.initialize(f'localhost:{port}', num_processes=2, process_id=number)
from jax.experimental import multihost_utils
from opd_jax.models import transformer
from opd_jax.storage import huggingface, orbax_folder
from opd_jax.sharding import mesh_layout

layout = mesh_layout(fsdp=2, tensor=2)
config, params = huggingface.load(f'{folder}/model', layout)
assert not params['embed']['table'].is_fully_addressable

@jax.jit
def run(params, tokens):
  model = transformer.bind(config, layout, params)
  return transformer.logits_of(model(tokens), model.head())

tokens = np.arange(24, dtype=np.int32).reshape(2, 12)
logits = multihost_utils.process_allgather(run(params, tokens), tiled=True)
if number == 0:
  np.save(f'{folder}/logits.npy', logits)
huggingface.save(f'{folder}/exported', config, layout, params)
orbax_folder.save(f'{folder}/ours', config, params)
again = orbax_folder.load(f'{folder}/ours', layout)[1]
jax.tree.map(lambda a, b: [np.testing.assert_array_equal(x.data, y.data) for x, y in
  zip(a.addressable_shards, b.addressable_shards, strict=True)], params, again)
"""


def free_port() -> int:
  with socket.socket() as probe:
    probe.bind(('localhost', 0))
    return probe.getsockname()[1]


def test_two_hosts_load_run_and_save_one_model(tmp_path, single, params_of):
  config = presets.tiny()
  huggingface.save(tmp_path / 'model', config, single, params_of(config))
  command = [sys.executable, '-c', WORKER]
  arguments = str(free_port()), str(tmp_path)
  workers = [
    subprocess.Popen(
      [*command, str(number), *arguments],
      stdout=subprocess.PIPE,
      stderr=subprocess.STDOUT,
      text=True,
    )
    for number in range(2)
  ]
  try:
    outputs = [worker.communicate(timeout=120)[0] for worker in workers]
  finally:  # one that failed leaves the other waiting
    for worker in workers:
      worker.kill()
      worker.communicate()
  assert [worker.returncode for worker in workers] == [0, 0], '\n'.join(outputs)[-3000:]

  @jax.jit
  def run(params, tokens):
    model = transformer.bind(config, single, params)
    return transformer.logits_of(model(tokens), model.head())

  want = run(params_of(config), np.arange(24, dtype=np.int32).reshape(2, 12))
  np.testing.assert_allclose(np.load(tmp_path / 'logits.npy'), want, atol=1e-5)
  original = (tmp_path / 'model' / 'model.safetensors').read_bytes()
  assert (tmp_path / 'exported' / 'model.safetensors').read_bytes() == original
  loaded = orbax_folder.load(tmp_path / 'ours', single)[1]
  jax.tree.map(np.testing.assert_array_equal, loaded, params_of(config))
  assert not list(tmp_path.glob('.*')), 'nothing half-written is left'
