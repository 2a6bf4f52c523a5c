"""Compile time against depth: 64 layers are one loop and should cost no more than 4, which are written out.

JAX_PLATFORMS=cpu python benchmarks/compile_time.py
"""

import statistics
import time

import jax
import jax.numpy as jnp

from opd_jax.models import presets, transformer
from opd_jax.sharding import mesh_layout

RUNS = 5


def seconds(layers: int, *, backward: bool) -> float:
  config, layout = presets.tiny(num_layers=layers, width=256, mlp_width=1024), mesh_layout()
  tokens = jax.ShapeDtypeStruct((4, 128), jnp.int32)

  def loss(params, tokens):
    model = transformer.bind(config, layout, params)
    hidden = model(tokens)
    return jnp.square(transformer.logits_of(hidden, model.head())).mean()

  lowered = jax.jit(jax.grad(loss) if backward else loss).lower(
    transformer.abstract(config, layout), tokens
  )
  started = time.perf_counter()
  lowered.compile()
  return time.perf_counter() - started


if __name__ == '__main__':
  jax.config.update('jax_enable_compilation_cache', False)
  seconds(2, backward=True)  # starts the backend
  print(
    f'median of {RUNS}, {jax.devices()[0].platform}\n{"program":20} {"4 layers":>10} {"64 layers":>10} {"ratio":>7}'
  )
  for backward in (False, True):
    pairs = [(seconds(4, backward=backward), seconds(64, backward=backward)) for _ in range(RUNS)]
    few, many = (statistics.median(column) for column in zip(*pairs, strict=True))
    ratio = statistics.median(b / a for a, b in pairs)
    print(
      f'{"forward + backward" if backward else "forward":20} {few:9.2f}s {many:9.2f}s {ratio:7.2f}'
    )
