"""Floor 5. What a run changes and a checkpoint keeps, and how both begin."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from opd_jax.judges import snapshots
from opd_jax.models import transformer
from opd_jax.storage import load
from opd_jax.training import optimiser_step
from opd_jax.training.experiment import Experiment, Stage
from opd_jax.types import Params, Weights


class State(NamedTuple):
  """Everything that an update moves."""

  params: Params
  optimiser: Any
  snapshots: Mapping[str, Params]  # judges that are earlier selves of the student, by name
  memory: Any  # what the method remembers of earlier batches

  @property
  def weights(self) -> Weights:
    return Weights(self.params, self.snapshots)


class RunPosition(NamedTuple):
  """Where a run stands: numbers and texts that JSON holds."""

  stage: int = 0  # number of the stage
  stage_step: int = 0  # rollout batches of this stage that are done
  step: int = 0  # of the run
  rows: int = 0  # trajectories so far: their numbers fix their random streams
  stream: dict[str, Any] | None = None  # position in the stage's data
  alarms: dict[str, float] | None = None  # what the alarms remember
  moving: dict[str, dict[str, float]] | None = None  # what numbers remember that look at metrics
  gates: dict[str, dict[str, Any]] | None = None  # what gates of judges remember


def initial_state(experiment: Experiment, stage: Stage, params: Params) -> State:
  """The state at the beginning of a stage: a fresh optimiser, and snapshots that are the student."""
  refreshes = snapshots.refreshes_of(stage.judges, stage.asked)
  return State(
    params=params,
    optimiser=optimiser_step.optimiser_state(
      stage.optimiser, params, experiment.model, experiment.layout
    ),
    snapshots=snapshots.initial(refreshes, params),
    memory=jax.tree.map(jnp.asarray, stage.method.memory),
  )


def abstract_state(experiment: Experiment, stage: Stage) -> State:
  """Its shapes and shardings, without a byte of it."""
  leaves = transformer.abstract(experiment.model, experiment.layout)
  refreshes = snapshots.refreshes_of(stage.judges, stage.asked)
  memory = jax.eval_shape(lambda: jax.tree.map(jnp.asarray, stage.method.memory))
  whole = experiment.layout.sharding()
  return State(
    params=leaves,
    optimiser=optimiser_step.abstract_optimiser(
      stage.optimiser, experiment.model, experiment.layout
    ),
    snapshots=dict.fromkeys(refreshes, leaves),
    memory=jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=whole), memory),
  )


def first_weights(experiment: Experiment, say: Callable[[str], None]) -> Any:
  """The student's weights at the very beginning."""
  if experiment.weights is None:
    key = jax.random.key(experiment.seed)
    return transformer.init(experiment.model, experiment.layout, key)
  say(f'loading the student: {experiment.weights}')
  types: dict[str, Any] = {
    'param_dtype': experiment.model.param_dtype,
    'dtype': experiment.model.dtype,
  }
  loaded = load.model(experiment.weights, experiment.layout, seed=experiment.seed, **types)
  free = ('param_dtype', 'dtype', 'remat', 'unroll', 'begin_token', 'end_tokens', 'pad_token')
  wanted, stored = (dataclasses.asdict(config) for config in (experiment.model, loaded.config))
  if unlike := [name for name in stored if name not in free and stored[name] != wanted[name]]:
    listed = ', '.join(f'{name} {stored[name]!r} instead of {wanted[name]!r}' for name in unlike)
    raise ValueError(
      f'train: {experiment.weights} is not the MODEL of this experiment: {listed}. Bind MODEL to what the weights are.'
    )
  return loaded.params
