"""The promise of `huggingface.load`, measured by the process itself: one tensor on the host, no copy of a stack."""

import re
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp

from opd_jax.models import presets, transformer
from opd_jax.storage import huggingface

SCRIPT = Path(__file__).parent.parent / 'benchmarks' / 'import_memory.py'


def test_import_peaks_at_one_tensor_above_its_arrays(tmp_path, single, params_of):
  """A stack is 96 MiB here and the largest tensor 39: a stack that is copied once breaks the bound."""
  config = presets.tiny(
    vocab_size=40_000, width=512, mlp_width=8192, num_layers=12, param_dtype='bfloat16'
  )
  ones = lambda leaf: jnp.ones(leaf.shape, leaf.dtype)  # memory asks for no random numbers
  params = jax.tree.map(ones, transformer.abstract(config, single))
  huggingface.save(tmp_path / 'model', config, single, params)
  tiny = presets.tiny(param_dtype='bfloat16')
  huggingface.save(tmp_path / 'tiny', tiny, single, params_of(tiny))
  command = [sys.executable, str(SCRIPT), 'read', str(tmp_path / 'model'), str(tmp_path / 'tiny')]
  done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
  assert done.returncode == 0, done.stderr
  above = float(re.search(r'peak above +([\d.]+) MiB', done.stdout)[1])
  # Besides the tensor: what the compiler and the allocator keep, about 60 MiB whatever the model.
  assert 39 < above < 39 + 90, done.stdout
