"""Weights, optimiser and gradient of a student that is also its reference and its own teacher, with LoRA and without.

python benchmarks/lora_memory.py [PRESET [RANK]]        from shapes alone; allocates nothing
"""

import dataclasses
import sys

from opd_jax import units
from opd_jax.commands import console
from opd_jax.models import adapters, presets
from opd_jax.models.lora import Lora
from opd_jax.sharding import mesh_layout

ROLES = 3  # student, reference, self-teacher


def main(preset: str = 'qwen3_1p7b', rank: str = '64') -> None:
  layout, model = mesh_layout(), presets.every()[preset](param_dtype='float32', dtype='bfloat16')
  settings = Lora(rank=int(rank), alpha=2 * int(rank))
  rows = []
  for name, lora in (
    ('every parameter', None),
    ('LoRA, bfloat16 base', settings),
    ('LoRA, int8 base', dataclasses.replace(settings, int8=True)),
  ):
    stored = dataclasses.replace(model, param_dtype='bfloat16')
    config = model if lora is None else adapters.with_lora(stored, lora)
    base, trained = map(
      units.bytes_of, (adapters.frozen(config, layout), adapters.trained(config, layout))
    )
    weights, moments, gradient = base + ROLES * trained, 2 * trained, trained
    shown = (base, trained, weights, moments + gradient, weights + moments + gradient)
    rows.append((name, *map(units.memory, shown)))
  head = ('trained', 'base', 'one role', 'weights of 3 roles', 'Adam and gradient', 'sum')
  console.table((f'{preset}: {head[0]}', *head[1:]), rows)


if __name__ == '__main__':
  main(*sys.argv[1:])
