"""Floor 5. What a run changes and a checkpoint keeps, and how both begin."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from opd_jax.judges import snapshots
from opd_jax.models import adapters, transformer
from opd_jax.models.config import ModelConfig
from opd_jax.storage import load
from opd_jax.training import optimiser_step
from opd_jax.training.experiment import Experiment, Stage
from opd_jax.types import Params, Weights


class Moved(NamedTuple):
  """What a checkpoint holds of a state: everything that an update moves."""

  params: Params
  optimiser: Any
  snapshots: Mapping[str, Params]
  memory: Any


class State(NamedTuple):
  """The weights of a run and what moves them. With LoRA `params` and `snapshots` are adapters."""

  params: Params  # what the optimiser moves
  optimiser: Any
  snapshots: Mapping[str, Params]  # judges that are earlier selves of the student, by name
  memory: Any  # what the method remembers of earlier batches
  base: Params  # what stays as it is: of the student and of all snapshots

  @property
  def weights(self) -> Weights:
    whole = lambda params: adapters.joined(self.base, params)
    return Weights(
      whole(self.params), {name: whole(params) for name, params in self.snapshots.items()}
    )

  @property
  def moved(self) -> Moved:
    return Moved(self.params, self.optimiser, self.snapshots, self.memory)


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
  stops: dict[str, dict[str, Any]] | None = None  # what rules remember that end the stage

  def after(self, rows: int) -> 'RunPosition':
    """Behind one more step, of so many trajectories."""
    counts = {'stage_step': self.stage_step + 1, 'step': self.step + 1, 'rows': self.rows + rows}
    return self._replace(**counts)


def initial_state(
  experiment: Experiment, stage: Stage, params: Params, base: Params = adapters.NO_BASE
) -> State:
  """The state at the beginning of a stage: a fresh optimiser, and snapshots that are the student.

  Args:
    params, base: what is trained and what is frozen.
  """
  refreshes = snapshots.refreshes_of(stage.judges, stage.asked)
  return State(
    params=params,
    optimiser=optimiser_step.optimiser_state(
      stage.optimiser, params, experiment.student, experiment.layout
    ),
    snapshots=snapshots.initial(refreshes, params),
    memory=jax.tree.map(jnp.asarray, stage.method.memory),
    base=base,
  )


def abstract_state(experiment: Experiment, stage: Stage) -> State:
  """Its shapes and shardings, without a byte of it."""
  leaves = adapters.trained(experiment.student, experiment.layout)
  refreshes = snapshots.refreshes_of(stage.judges, stage.asked)
  memory = jax.eval_shape(lambda: jax.tree.map(jnp.asarray, stage.method.memory))
  whole = experiment.layout.sharding()
  return State(
    params=leaves,
    optimiser=optimiser_step.abstract_optimiser(
      stage.optimiser, experiment.student, experiment.layout
    ),
    snapshots=dict.fromkeys(refreshes, leaves),
    memory=jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=whole), memory),
    base=adapters.frozen(experiment.student, experiment.layout),
  )


def begin(experiment: Experiment, say: Callable[[str], None]) -> tuple[Params, Params]:
  """What is frozen and what is trained, at the very beginning."""
  key = jax.random.fold_in(jax.random.key(experiment.seed), 2**31 - 4)
  params = first_weights(experiment, say)
  return adapters.begin(experiment.student, experiment.layout, params, key)


def starting_point(experiment: Experiment, base: Params, say: Callable[[str], None]) -> Params:
  """The weights that a run began with, stored as `Experiment.model` says; adapters change nothing there."""
  if experiment.lora is None:
    return first_weights(experiment, say)
  return adapters.merged(experiment.student, experiment.layout, base, experiment.model)


def whole_student(experiment: Experiment, state: State) -> Params:
  """The student's weights as a model without adapters, stored as `Experiment.model` says."""
  student, layout = experiment.student, experiment.layout
  return adapters.merged(student, layout, state.weights.student, experiment.model)


def first_weights(experiment: Experiment, say: Callable[[str], None]) -> Any:
  """The student's weights at the very beginning, without adapters."""
  student = adapters.plain(experiment.student)
  if experiment.weights is None:
    key = jax.random.key(experiment.seed)
    return transformer.init(student, experiment.layout, key)
  say(f'loading the student: {experiment.weights}')
  types: dict[str, Any] = {
    'param_dtype': student.param_dtype,
    'dtype': student.dtype,
  }
  loaded = load.model(experiment.weights, experiment.layout, seed=experiment.seed, **types)
  check_model(experiment, loaded.config)
  return loaded.params


def check_model(experiment: Experiment, stored: ModelConfig) -> None:
  """Refuses weights of another model than that of the experiment."""
  free = ('param_dtype', 'dtype', 'remat', 'unroll', 'begin_token', 'end_tokens', 'pad_token')
  student = adapters.plain(experiment.student)
  wanted, known = (dataclasses.asdict(config) for config in (student, stored))
  if unlike := [name for name in known if name not in free and known[name] != wanted[name]]:
    listed = ', '.join(f'{name} {known[name]!r} instead of {wanted[name]!r}' for name in unlike)
    raise ValueError(
      f'train: {experiment.weights} is not the MODEL of this experiment: {listed}. Bind MODEL to what the weights are.'
    )
