"""Memory of scoring at a real vocabulary: flat in tokens. On a GPU also tokens/s and the share of peak FLOPs.

JAX_PLATFORMS=cpu python benchmarks/scorer.py            compiled temporaries and the process's own high-water mark
python benchmarks/scorer.py qwen3_1p7b 16 2048           speed of a real shape, bfloat16, on an accelerator
"""

import re
import statistics
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np

from opd_jax.inference import scorer
from opd_jax.models import presets, transformer
from opd_jax.sharding import mesh_layout
from opd_jax.types import ScoreRequest

VOCABULARY = 151_936
MIB = 2**20


def status(field: str) -> int:
  found = re.search(
    rf'^{field}:\s+(\d+) kB', Path('/proc/self/status').read_text(), flags=re.MULTILINE
  )
  assert found
  return int(found[1]) * 1024


def arguments(rows: int, length: int):
  rng = np.random.RandomState(0)
  draw = lambda width: rng.randint(0, VOCABULARY, (rows, width)).astype(np.int32)
  return draw(8), np.full(rows, 8, np.int32), draw(length)


def memory(tokens: int) -> None:
  """One forward of `tokens` response tokens through a narrow model, whose own activations hardly count."""
  config, layout = presets.tiny(vocab_size=VOCABULARY), mesh_layout()
  params = transformer.init(config, layout, jax.random.key(0))
  request = ScoreRequest(entropy=True, top_k=8)
  batch = arguments(tokens // 512, 512)
  compiled = scorer.score.lower(
    params, *batch, config=config, layout=layout, request=request
  ).compile()
  temporaries = compiled.memory_analysis().temp_size_in_bytes
  jax.block_until_ready(
    scorer.score(params, *arguments(1, 512), config=config, layout=layout, request=request)
  )
  before = status('VmHWM')
  jax.block_until_ready(scorer.score(params, *batch, config=config, layout=layout, request=request))
  extra, dense = status('VmHWM') - before, tokens * VOCABULARY * 4
  print(
    f'{tokens:8} {temporaries / MIB:12.0f} MiB {extra / MIB:18.0f} MiB {dense / MIB:14.0f} MiB',
    flush=True,
  )


def speed(preset: str, rows: int, length: int) -> None:
  config = presets.every()[preset](param_dtype='bfloat16', dtype='bfloat16')
  layout = mesh_layout()
  params = transformer.init(config, layout, jax.random.key(0))
  batch = jax.device_put(arguments(rows, length))
  run = lambda: jax.block_until_ready(scorer.score(params, *batch, config=config, layout=layout))
  run()
  seconds = []
  for _ in range(7):
    started = time.perf_counter()
    run()
    seconds.append(time.perf_counter() - started)
  second, tokens = statistics.median(seconds), rows * length
  attention = 4 * config.num_layers * config.num_heads * config.head_dim * length / 2
  rate = tokens * (2 * transformer.count(config, layout) + attention) / second / 1e12
  device = jax.devices()[0].device_kind
  print(
    f'{preset} {rows} x {length}, {device}: {tokens / second:,.0f} tokens/s, {rate:.1f} TFLOP/s'
  )


if __name__ == '__main__':
  if len(sys.argv) == 4:
    speed(sys.argv[1], *map(int, sys.argv[2:]))
  elif len(sys.argv) == 2:
    memory(int(sys.argv[1]))
  else:
    print(f'V = {VOCABULARY}, float32, width 64, entropy and top-8')
    print(
      f'{"tokens":>8} {"temporaries":>16} {"beyond 512 tokens":>22} {"[tokens, V]":>18}', flush=True
    )
    for tokens in (1024, 4096, 16_384):
      subprocess.run([sys.executable, __file__, str(tokens)], check=True)
