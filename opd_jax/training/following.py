"""Floor 5. What follows a step or an evaluation: judges that are the student, and whoever looks at metrics.

Everything here is a function of what was remembered and of one row of metrics; what it remembers is in `RunPosition`,
so the checkpoint keeps it.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from opd_jax.evaluation.evaluator import Evaluation
from opd_jax.judges import snapshots
from opd_jax.judges.gates import Gate
from opd_jax.judges.snapshots import Followed
from opd_jax.method import Evidence
from opd_jax.processes import to_host
from opd_jax.training import moving, stopping
from opd_jax.training.experiment import Stage
from opd_jax.training.measured import check_measured
from opd_jax.training.runtime import StageRuntime
from opd_jax.training.state import RunPosition, State


class Moved(NamedTuple):
  """What a row of metrics has moved, and what the metrics say of it."""

  state: State
  position: RunPosition
  seen: dict[str, float]  # refresh/NAME: ‖θ - φ‖ before a renewal; absent where there was none


def gates_of(stage: Stage) -> dict[str, Gate]:
  """The gates of the judges that are asked anything, by the name of the snapshot."""
  refreshes = snapshots.refreshes_of(stage.judges, stage.asked)
  return {name: each.gate for name, each in refreshes.items() if each.gate is not None}


def check_gates(stage: Stage, evaluations: Sequence[Evaluation]) -> None:
  """Refuses a gate, or a rule that ends the stage, that looks at what is never measured."""
  for name, gate in gates_of(stage).items():
    for metric in gate.metrics:
      check_measured(f'the gate of the judge {name}', metric, stage, evaluations)
      _check_read_in_time(name, metric, stage, evaluations)
  for rule in stage.stops:
    check_measured(f'StopWhen {rule.name}', rule.metric, stage, evaluations)


def _check_read_in_time(
  name: str, metric: str, stage: Stage, evaluations: Sequence[Evaluation]
) -> None:
  """Refuses a gate on an evaluation that is read only where a stage begins and ends: it would never open."""
  reading = [each for each in evaluations if metric.startswith(f'eval/{each.label}/')]
  if reading and not any(0 < each.every < stage.steps for each in reading):
    raise ValueError(
      f'the gate of the judge {name} looks at {metric}, which is read before step 0 and after the stage only, so it '
      f'never opens. Bind evaluator.Evaluation.every below the {stage.steps} steps of the stage.'
    )


def after_update(
  runtime: StageRuntime, state: State, evidence: Evidence, position: RunPosition
) -> tuple[State, dict[str, float]]:
  """Refreshes the snapshots that are due whatever the metrics say, and the method's memory.

  Args:
    position: before the step.
  """
  refreshes = snapshots.refreshes_of(runtime.stage.judges, runtime.stage.asked)
  step = position.stage_step + 1
  due = [name for name, each in refreshes.items() if each.is_due(step)]
  followed = _followed(runtime, state, due, step, position)
  state = state._replace(snapshots=followed.snapshots, memory=runtime.remember(evidence))
  return state, _shocks(followed)


def after_row(
  runtime: StageRuntime, state: State, position: RunPosition, row: Mapping[str, Any]
) -> Moved:
  """Shows a row of a step or of an evaluation to gates, to numbers that look at metrics, to rules that end the stage.

  Args:
    position: after the step.
  """
  memory, due = dict(position.gates or {}), []
  for name, gate in gates_of(runtime.stage).items():
    decision = gate.after(memory.get(name, {}), row)
    memory[name] = decision.memory
    due += [name] * decision.opens
  followed = _followed(runtime, state, due, position.stage_step, position)
  known = moving.after(runtime.moving, position.moving, row)
  stops = stopping.after_row(runtime.stage.stops, position.stops, row)
  return Moved(
    state._replace(snapshots=followed.snapshots),
    position._replace(gates=memory, moving=known, stops=stops),
    _shocks(followed),
  )


def _followed(
  runtime: StageRuntime, state: State, due: Sequence[str], step: int, position: RunPosition
) -> Followed:
  """The snapshots with those that are due refreshed; numbers stand where the position has them."""
  refreshes = snapshots.refreshes_of(runtime.stage.judges, runtime.stage.asked)
  decisions = moving.decisions(position.moving)
  return snapshots.followed(state.snapshots, refreshes, state.params, due, step, decisions)


def _shocks(followed: Followed) -> dict[str, float]:
  found = to_host(followed.shocks)
  return {f'refresh/{name}': float(size) for name, size in found.items()}
