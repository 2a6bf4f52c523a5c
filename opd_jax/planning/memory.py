"""Floor 6. What will lie where, before anything is allocated."""

import dataclasses
import math
from typing import Any, NamedTuple

import jax

from opd_jax.models import adapters, transformer
from opd_jax.storage import parameter_names
from opd_jax.training.experiment import Experiment, Stage
from opd_jax.training.state import abstract_state


class Plan(NamedTuple):
  """Parameters of a model on a layout."""

  parameters: int
  trained: int  # of them
  bytes_total: int
  bytes_per_device: int
  largest: tuple[tuple[str, tuple[int, ...], int], ...]  # path, shape on one device, bytes there


def plan(experiment: Experiment, *, largest: int = 5) -> Plan:
  """Counts from shapes and shardings alone."""
  student, layout = experiment.student, experiment.layout
  leaves = parameter_names.flat(transformer.abstract(student, layout))
  local = {path: leaf.sharding.shard_shape(leaf.shape) for path, leaf in leaves.items()}
  size = {path: math.prod(local[path]) * leaf.dtype.itemsize for path, leaf in leaves.items()}
  top = sorted(size, key=lambda path: -size[path])[:largest]
  return Plan(
    parameters=sum(leaf.size for leaf in leaves.values()),
    trained=sum(leaf.size for leaf in jax.tree.leaves(adapters.trained(student, layout))),
    bytes_total=sum(leaf.size * leaf.dtype.itemsize for leaf in leaves.values()),
    bytes_per_device=sum(size.values()),
    largest=tuple((path, local[path], size[path]) for path in top),
  )


class Held(NamedTuple):
  """Bytes that a stage holds on each device. Judges with weights of their own and activations come on top."""

  parameters: int
  optimiser: int
  gradient: int  # float32
  snapshots: int  # judges that are earlier selves of the student
  writer: int  # what is sampled from: layers apart, in the type they are used in


def held(experiment: Experiment, stage: Stage) -> Held:
  """Counts from shapes and shardings alone."""
  config, state = experiment.student, abstract_state(experiment, stage)
  copy = transformer.decoding_config(config)
  writes = stage.mix.needs_student and copy != config
  wide = adapters.trained(dataclasses.replace(config, param_dtype='float32'), experiment.layout)
  return Held(
    parameters=_each(state.params) + _each(state.base),
    optimiser=_each(state.optimiser),
    gradient=_each(wide),
    snapshots=_each(state.snapshots),
    writer=_each(transformer.abstract(copy, experiment.sampling_layout or experiment.layout))
    if writes
    else 0,
  )


def _each(tree: Any) -> int:
  """Bytes of a tree on one device."""
  return sum(
    math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize
    for leaf in jax.tree.leaves(tree)
  )


def devices_of(experiment: Experiment) -> str:
  """One line about the mesh, e.g. `data=1 x fsdp=8 x tensor=1 on 8 tpu devices`."""
  mesh = experiment.layout.mesh
  shape = ' x '.join(f'{name}={size}' for name, size in mesh.shape.items())
  return f'{shape} on {mesh.size} {mesh.devices.flat[0].platform} device{"s" * (mesh.size != 1)}'
