"""Floor 6. What will lie where, before anything is allocated."""

import dataclasses
import math
from typing import Any, NamedTuple

import jax

from opd_jax.judges.spec import Served, readers
from opd_jax.models import adapters, transformer
from opd_jax.models.config import ModelConfig
from opd_jax.planning import cost, flops
from opd_jax.sharding import Layout
from opd_jax.storage import parameter_names
from opd_jax.training.experiment import Experiment, Stage
from opd_jax.training.state import abstract_state
from opd_jax.units import bytes_of


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
    bytes_total=bytes_of(leaves),
    bytes_per_device=sum(size.values()),
    largest=tuple((path, local[path], size[path]) for path in top),
  )


class Held(NamedTuple):
  """Bytes that a stage holds on each device. Activations come on top, and prompts in the cache."""

  parameters: int
  optimiser: int
  gradient: int  # float32
  snapshots: int  # judges that are earlier selves of the student
  writer: int  # what is sampled from: layers apart, in the type they are used in
  cache: int  # keys and values of the rows in flight, were every response as long as its budget
  judges: (
    int  # that have weights of their own here and whose shape is known; see `unknown`, and `apart`
  )


def held(experiment: Experiment, stage: Stage) -> Held:
  """Counts from shapes and shardings alone."""
  config, state = experiment.student, abstract_state(experiment, stage)
  copy, place = transformer.decoding_config(config), experiment.writing_layout
  writes = stage.mix.needs_student and copy != config
  wide = adapters.trained(dataclasses.replace(config, param_dtype='float32'), experiment.layout)
  return Held(
    parameters=bytes_each(state.params) + bytes_each(state.base),
    optimiser=bytes_each(state.optimiser),
    gradient=bytes_each(wide),
    snapshots=bytes_each(state.snapshots),
    writer=bytes_each(transformer.abstract(copy, place)) if writes else 0,
    cache=_cache(copy, place, stage) if stage.mix.needs_student else 0,
    judges=sum(
      bytes_each(transformer.abstract(config, layout))
      for config, layout, _ in _judges(experiment, stage)
      if config is not None and not layout.apart(experiment.layout)
    ),
  )


def unknown(experiment: Experiment, stage: Stage) -> list[str]:
  """Weights of judges whose shape nobody knows without fetching them."""
  return [weights for config, _, weights in _judges(experiment, stage) if config is None]


def apart(experiment: Experiment, stage: Stage) -> list[tuple[str, Layout, int]]:
  """Judges on devices of their own: their weights, where they lie, and their bytes on each of those."""
  return [
    (weights, layout, bytes_each(transformer.abstract(config, layout)))
    for config, layout, weights in _judges(experiment, stage)
    if config is not None and layout.apart(experiment.layout)
  ]


def _judges(experiment: Experiment, stage: Stage) -> list[tuple[ModelConfig | None, Layout, str]]:
  """Every model with weights of its own that judges ask, once: shape, layout, and what they are called."""
  found = {}
  for name in stage.asked:
    for _, judge in readers(stage.judges[name]):
      if isinstance(judge, Served) or judge.weights is None:
        continue
      layout = judge.layout or experiment.layout
      try:
        config = cost.config_of(judge, experiment.model, {})
      except ValueError:
        config = None
      found[judge.weights, judge.dtype, layout] = (config, layout, judge.weights)
  return list(found.values())


def _cache(config: ModelConfig, layout: Layout, stage: Stage) -> int:
  rows = min(stage.sampling.slots, stage.prompts * stage.samples)
  keys = flops.key_bytes(config) * stage.sampling.budget // layout.size('kv_heads')
  state = flops.state_bytes(config) // layout.size('heads')
  return rows * (keys + state) // layout.size('batch')


def bytes_each(tree: Any) -> int:
  """Bytes of a tree, or of its shapes, on one device; a leaf that lies nowhere yet counts whole."""

  def one(leaf: Any) -> int:
    shape = leaf.sharding.shard_shape(leaf.shape) if leaf.sharding is not None else leaf.shape
    return math.prod(shape) * leaf.dtype.itemsize

  return sum(map(one, jax.tree.leaves(tree)))


def devices_of(experiment: Experiment) -> str:
  """One line about the mesh, e.g. `data=1 x fsdp=8 x tensor=1 on 8 tpu devices`."""
  mesh = experiment.layout.mesh
  shape = ' x '.join(f'{name}={size}' for name, size in mesh.shape.items())
  return f'{shape} on {mesh.size} {mesh.devices.flat[0].platform} device{"s" * (mesh.size != 1)}'
