"""Floor 6. One stage, step by step, for a loop of your own: sample, score, weigh, update.

Nothing is written and nothing resumes; `opd train` is the same loop with a folder, checkpoints and alarms.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax

from opd_jax.data.curriculum import Curriculum
from opd_jax.data.problems import Problem
from opd_jax.data.stream import Stream
from opd_jax.evaluation.evaluator import Evaluator
from opd_jax.method import Evidence
from opd_jax.models import adapters
from opd_jax.responses import Responses
from opd_jax.training import following, student_folder, verbs, writers
from opd_jax.training import state as states
from opd_jax.training.experiment import Experiment
from opd_jax.training.gradient import Batch
from opd_jax.training.runtime import StageRuntime, build_runtime
from opd_jax.training.state import RunPosition, State
from opd_jax.types import Params


class Training(NamedTuple):
  """A stage between two steps. `update` returns the next one; this one's arrays are used up by it."""

  runtime: StageRuntime  # what does not move: judges at work, tokenizer, sampling
  stream: Stream | Curriculum  # of problems
  state: State  # weights, optimiser, earlier selves of the student
  position: RunPosition  # numbers: step, rows so far


def begin(experiment: Experiment, *, stage: int = 0, params: Params | None = None) -> Training:
  """A stage before its first step, with its judges loaded.

  Args:
    experiment: the run.
    stage: its number in the experiment.
    params: what is trained, e.g. as an earlier stage ended (`training.state.params`); None takes the experiment's.
  """
  runtime, base = build_runtime(experiment, stage), adapters.NO_BASE
  if params is None or experiment.lora is not None:
    base, own = states.begin(experiment, lambda text: None)
    params = own if params is None else params
  state = states.initial_state(experiment, runtime.stage, params, base=base)
  return Training(runtime, runtime.stream(), state, RunPosition(stage=stage))


def sample(training: Training, problems: Sequence[Problem] | None = None) -> Responses:
  """Verified responses to the next problems of the stage, or to some of your own."""
  if problems is None:
    problems = training.runtime.take(training.stream, training.position)
  return verbs.sample(training.runtime, training.state.weights, problems, training.position)


def score(training: Training, responses: Responses) -> Evidence:
  """What the student and the judges think of every token."""
  state = training.state
  return verbs.score(training.runtime, state.weights, responses, training.position, state.memory)


def weigh(training: Training, evidence: Evidence) -> Batch:
  """What the method makes of it: terms with their coefficients."""
  return verbs.weigh(training.runtime, training.state.weights, evidence)[0]


def update(
  training: Training, responses: Responses, evidence: Evidence, batch: Batch
) -> tuple[Training, dict[str, Any]]:
  """The stage after the step, and metrics of it."""
  runtime, stream, state, position = training
  state, metrics = verbs.updates(runtime, state, responses, evidence, batch, position)
  state, _ = following.after_update(runtime, state, evidence, position)
  moved = following.after_row(runtime, state, position.after(len(responses.problems)), metrics)
  return Training(runtime, stream, moved.state, moved.position), metrics


def evaluate(training: Training) -> dict[str, Any]:
  """The metrics of the experiment's evaluations, by the student as it is."""
  runtime = training.runtime
  model = writers.student_model(runtime, training.state.weights)
  key, metrics = jax.random.key(runtime.experiment.seed), {}
  for evaluation in runtime.experiment.evaluations:
    metrics |= Evaluator(evaluation, runtime.tokenizer, key).run(model).metrics
  return metrics


def save(training: Training, folder: str | Path) -> None:
  """A folder with the student, which every command reads; `opd convert` makes one for transformers of it."""
  student_folder.save(training.runtime.experiment, training.state, Path(folder))
