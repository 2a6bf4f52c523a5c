"""Compiles forward + backward for TPU chips that are not here: which attention, how much memory, no surprises.

TPU_SKIP_MDS_QUERY=1 python benchmarks/tpu_compile.py [v5e:2x4 ...]     (needs libtpu: pip install -e '.[tpu]')
"""

import importlib.util
import os
import sys

os.environ.setdefault('TPU_SKIP_MDS_QUERY', '1')
os.environ['JAX_PLATFORMS'] = 'cpu'

import jax
import jax.numpy as jnp
from jax.experimental import topologies

from opd_jax.models import presets, transformer
from opd_jax.sharding import mesh_layout

BATCH, LENGTH = 8, 2048


def measure(name: str, config, layout) -> None:
  params = transformer.abstract(config, layout)

  def step(params, tokens, start):
    def loss(params):
      hidden = transformer.bind(config, layout, params)(tokens, start=start)
      return jnp.square(hidden.astype(jnp.float32)).mean()

    return jax.value_and_grad(loss)(params)

  batch = jax.ShapeDtypeStruct(
    (BATCH, LENGTH), jnp.int32, sharding=layout.sharding('batch', 'length')
  )
  start = jax.ShapeDtypeStruct((BATCH,), jnp.int32, sharding=layout.sharding('batch'))
  gradients = jax.tree.map(lambda leaf: leaf.sharding, params)
  try:
    compiled = jax.jit(step, out_shardings=(None, gradients)).lower(params, batch, start).compile()
  except jax.errors.JaxRuntimeError as error:
    print(f'{name:42} does not fit: {str(error).splitlines()[0][:110]}', flush=True)
    return
  memory, attention = (
    compiled.memory_analysis(),
    'splash' if 'splash' in compiled.as_text() else 'xla',
  )
  held, scratch = memory.argument_size_in_bytes / 2**30, memory.temp_size_in_bytes / 2**30
  print(f'{name:42} {attention:8} {held:9.2f} GiB {scratch:9.2f} GiB', flush=True)


if __name__ == '__main__':
  if importlib.util.find_spec('libtpu') is None:
    sys.exit(print("skipped: libtpu is not installed (pip install -e '.[tpu]')"))
  print(f'{BATCH} x {LENGTH} tokens, bf16, remat full; per chip')
  print(f'{"program":42} {"attention":8} {"arguments":>13} {"temporaries":>13}')
  for topology in sys.argv[1:] or ['v5e:2x4', 'v5p:2x2x2', 'v6e:2x4']:
    devices = tuple(topologies.get_topology_desc(topology, 'tpu').devices)
    halves = {'param_dtype': 'bfloat16', 'dtype': 'bfloat16', 'remat': 'full'}
    fsdp = mesh_layout(fsdp=len(devices), devices=devices)
    both = mesh_layout(fsdp=len(devices) // 2, tensor=2, devices=devices)
    measure(f'{topology} qwen3_1p7b fsdp', presets.qwen3_1p7b(**halves), fsdp)
    measure(f'{topology} qwen3_1p7b fsdp x tensor', presets.qwen3_1p7b(**halves), both)
    measure(f'{topology} llama3p2_1b fsdp x tensor', presets.llama3p2_1b(**halves), both)
    measure(f'{topology} qwen3_30b_a3b fsdp x tensor', presets.qwen3_30b_a3b(**halves), both)
