"""Floor 5. The evaluations of a run: when they take place, and what they report."""

from typing import Any

import jax

from opd_jax.evaluation import geometry
from opd_jax.evaluation.evaluator import Evaluator
from opd_jax.training import moving, writers
from opd_jax.training.experiment import Experiment
from opd_jax.training.recorder import Recorder, texts_record
from opd_jax.training.runtime import StageRuntime
from opd_jax.training.state import RunPosition, State, whole_student
from opd_jax.types import Params


class Evaluations:
  """The evaluations of an experiment, with the teacher of a stage where it has one."""

  def __init__(
    self, experiment: Experiment, runtime: StageRuntime, recorder: Recorder, first: Params | None
  ):
    self.runtime, self.recorder, self.seed = runtime, recorder, experiment.seed
    self.first = first  # weights of the run, where their geometry is wanted
    key = jax.random.key(experiment.seed)
    self.evaluators = [
      Evaluator(evaluation, runtime.tokenizer, key) for evaluation in experiment.evaluations
    ]

  def run(
    self, state: State, position: RunPosition, *, all_of_them: bool = False
  ) -> dict[str, Any]:
    """Those that are due, or all; returns one row of metrics for all of them, empty where none was."""
    evaluators = [
      evaluator
      for evaluator in self.evaluators
      if all_of_them or evaluator.evaluation.is_due(position.step)
    ]
    if not evaluators:
      return {}
    model = writers.student_model(self.runtime, state.weights)
    row: dict[str, Any] = {}
    for evaluator in evaluators:
      outcome = evaluator.run(model)
      row |= outcome.metrics
      if (teacher := self.runtime.judges.get('teacher')) is not None:
        row |= evaluator.reverse_kl(
          teacher,
          state.weights,
          outcome,
          step=position.stage_step,
          seed=self.seed,
          decisions=moving.decisions(position.moving),
        )
        if evaluator.evaluation.draft_of_teacher:
          row |= evaluator.drafting(model, teacher.model(state.weights))
      name = f'{self.runtime.stage.name}, {evaluator.evaluation.label}'
      self.recorder.samples(texts_record(outcome.responses, position.step, name))
      records = evaluator.outcomes(outcome.responses, step=position.step, seed=self.seed)
      self.recorder.outcomes(records)
    if self.first is not None:
      now = whole_student(self.runtime.experiment, state)
      row |= self._geometry(self.first, now)
    return row

  def _geometry(self, first: Params, now: Params) -> dict[str, float]:
    """How far the weights are from those that the run began with."""
    config, layout = self.runtime.experiment.model, self.runtime.layout
    changes = geometry.changes(config, layout, first, now)
    return {f'geometry/{name}': value for name, value in geometry.summary(changes).items()}
