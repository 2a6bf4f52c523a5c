"""Peak host memory while a published checkpoint is imported, above the arrays that it becomes.

    JAX_PLATFORMS=cpu python benchmarks/import_memory.py [preset] [shards]

Writes a random checkpoint of the preset's shape, imports it in a fresh process, and reads that process's
own high-water mark. The floor of any import is one tensor: it has to be read before it can be placed.
"""

import re
import subprocess
import sys
import tempfile
from pathlib import Path

import jax
import numpy as np

from opd_jax.models import presets, transformer
from opd_jax.sharding import mesh_layout
from opd_jax.storage import huggingface, parameter_names

MIB = 2**20


def status(field: str) -> int:
  """A figure of this process in bytes. (getrusage would also count the parent, up to the exec.)"""
  found = re.search(
    rf'^{field}:\s+(\d+) kB', Path('/proc/self/status').read_text(), flags=re.MULTILINE
  )
  assert found
  return int(found[1]) * 1024


def write(folder: Path, preset: str, shards: int) -> None:
  config, layout = presets.every()[preset](param_dtype='bfloat16'), mesh_layout()
  params = transformer.init(config, layout, jax.random.key(0))
  size = sum(leaf.nbytes for leaf in jax.tree.leaves(params))
  huggingface.save(folder, config, layout, params, max_file_bytes=size // shards + 64 * MIB)


def read(folder: Path, warm_up: Path) -> None:
  layout = mesh_layout()
  huggingface.load(
    warm_up, layout
  )  # imports, compiler and allocator are there before the measurement begins
  before = status('VmRSS')
  config, params = huggingface.load(folder, layout)
  jax.block_until_ready(params)
  peak, after = status('VmHWM'), status('VmRSS')
  final = sum(leaf.nbytes for leaf in jax.tree.leaves(params))
  largest = max(int(np.prod(piece.shape)) for piece in parameter_names.pieces(config, layout)) * 2
  above = peak - before - final
  print(
    f'final arrays   {final / MIB:9.1f} MiB ({(after - before - final) / MIB:+.1f} MiB resident beyond them at the end)'
  )
  print(f'largest tensor {largest / MIB:9.1f} MiB')
  print(f'peak above     {above / MIB:9.1f} MiB = {above / largest:.2f} x the largest tensor')


if __name__ == '__main__':
  if sys.argv[1:2] == ['read']:
    read(Path(sys.argv[2]), Path(sys.argv[3]))
    sys.exit()
  preset, shards = (*sys.argv[1:], *('qwen3_0p6b', '4')[len(sys.argv) - 1 :])
  with tempfile.TemporaryDirectory() as scratch:
    folder, warm_up = Path(scratch) / 'model', Path(scratch) / 'tiny'
    write(folder, preset, int(shards))
    write(warm_up, 'tiny', 1)
    print(f'{preset} in bfloat16, {len(list(folder.glob("*.safetensors")))} shards')
    subprocess.run([sys.executable, __file__, 'read', str(folder), str(warm_up)], check=True)
