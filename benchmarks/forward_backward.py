"""Forward + backward of a real shape on one accelerator: tokens/s and the share of its peak that the model uses.

    python benchmarks/forward_backward.py [preset] [batch] [length] [remat …]

By default qwen3_1p7b 8 4096 on an accelerator, tiny 4 256 on a CPU, in bfloat16.

Model FLOPs are those of the published arithmetic, without recomputation: 6 per parameter in a matrix and token,
and 12 · layers · heads · head size · length / 2 per token for causal attention. The loss stands in for a real
one: it reads every hidden state, and the head is left out of both the program and the count.
"""

import statistics
import sys
import time

import jax
import jax.numpy as jnp

from opd_jax.models import presets, transformer
from opd_jax.sharding import mesh_layout

RUNS = 7
# Dense bf16 peak of one chip, in TFLOP/s, as published.
PEAK = {
  'H100': 989.4,
  'H200': 989.4,
  'A100': 312.0,
  'TPU v5 lite': 197.0,
  'TPU v5p': 459.0,
  'TPU v6 lite': 918.0,
}


def model_flops(config, batch: int, length: int) -> float:
  tables = config.vocab_size * config.width * (1 if config.tied else 2)
  matrices = transformer.count(config, mesh_layout()) - tables
  attention = 12 * config.num_layers * config.num_heads * config.head_dim * length / 2
  return batch * length * (6 * matrices + attention)


def measure(config, batch: int, length: int) -> list[float]:
  layout = mesh_layout()
  params = transformer.init(config, layout, jax.random.key(0))
  tokens = jax.random.randint(jax.random.key(1), (batch, length), 0, config.vocab_size)

  @jax.jit
  def step(params, tokens):
    def loss(params):
      hidden = transformer.bind(config, layout, params)(tokens)
      return jnp.square(hidden.astype(jnp.float32)).mean()

    return jax.value_and_grad(loss)(params)

  jax.block_until_ready(step(params, tokens))
  seconds = []
  for _ in range(RUNS):
    started = time.perf_counter()
    jax.block_until_ready(step(params, tokens))
    seconds.append(time.perf_counter() - started)
  return seconds


if __name__ == '__main__':
  device = jax.devices()[0]
  usual = ('tiny', '4', '256') if device.platform == 'cpu' else ('qwen3_1p7b', '8', '4096')
  preset, batch, length = (*sys.argv[1:4], *usual[len(sys.argv) - 1 :])
  batch, length = int(batch), int(length)
  peak = next((value for name, value in PEAK.items() if name in device.device_kind), None)
  print(f'{preset} bfloat16, {batch} x {length} tokens, {device.device_kind}, median of {RUNS}')
  for remat in sys.argv[4:] or ('none', 'dots', 'full'):
    config = presets.every()[preset](param_dtype='bfloat16', dtype='bfloat16', remat=remat)
    try:
      second = statistics.median(measure(config, batch, length))
    except jax.errors.JaxRuntimeError as error:
      print(f'remat {remat:5} does not fit: {str(error).splitlines()[0][:90]}')
      continue
    rate = model_flops(config, batch, length) / second / 1e12
    share = f'{rate / peak:.1%} of peak' if peak else 'peak of this device unknown'
    print(
      f'remat {remat:5} {second * 1e3:9.1f} ms  {batch * length / second:10.0f} tokens/s  {rate:7.1f} TFLOP/s  {share}',
      flush=True,
    )
