"""Floor 5. What will lie where, before anything is allocated."""

import math
from typing import NamedTuple

from opd_jax.models import names, transformer
from opd_jax.training.experiment import Experiment


class Plan(NamedTuple):
  """Parameters of a model on a layout."""

  parameters: int
  bytes_total: int
  bytes_per_device: int
  largest: tuple[tuple[str, tuple[int, ...], int], ...]  # path, shape on one device, bytes there


def plan(experiment: Experiment, *, largest: int = 5) -> Plan:
  """Counts from shapes and shardings alone."""
  leaves = names.flat(transformer.abstract(experiment.model, experiment.layout))
  local = {path: leaf.sharding.shard_shape(leaf.shape) for path, leaf in leaves.items()}
  size = {path: math.prod(local[path]) * leaf.dtype.itemsize for path, leaf in leaves.items()}
  top = sorted(size, key=lambda path: -size[path])[:largest]
  return Plan(
    parameters=sum(leaf.size for leaf in leaves.values()),
    bytes_total=sum(leaf.size * leaf.dtype.itemsize for leaf in leaves.values()),
    bytes_per_device=sum(size.values()),
    largest=tuple((path, local[path], size[path]) for path in top),
  )


def devices_of(experiment: Experiment) -> str:
  """One line about the mesh, e.g. `data=1 x fsdp=8 x tensor=1 on 8 tpu devices`."""
  mesh = experiment.layout.mesh
  shape = ' x '.join(f'{name}={size}' for name, size in mesh.shape.items())
  return f'{shape} on {mesh.size} {mesh.devices.flat[0].platform} device{"s" * (mesh.size != 1)}'
