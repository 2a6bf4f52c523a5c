"""Floor 5. Which metrics can ever be measured: whoever looks at another is refused."""

from collections.abc import Sequence

from opd_jax.evaluation.evaluator import Evaluation
from opd_jax.training.experiment import Stage

OF_JUDGES = 'reverse_kl', 'unknown'  # of an evaluation, where the stage has a teacher


def check_measured(who: str, metric: str, stage: Stage, evaluations: Sequence[Evaluation]) -> None:
  """Refuses, by its name, a metric that no row of this stage will have.

  Args:
    who: looks at it.
    metric: as metrics.jsonl names it.
    stage, evaluations: of the experiment.
  """
  told = f'stage {stage.name}: {who} looks at {metric}, and'
  if metric == 'reward' and stage.task.verify is None:
    raise ValueError(
      f'{told} the task {stage.task.name} has no verifier. Give it one (problems.Task.verify), or look at another '
      'metric.'
    )
  if not metric.startswith('eval/'):
    return
  prefixes = [f'eval/{each.label}/' for each in evaluations]
  for prefix, evaluation in zip(prefixes, evaluations, strict=True):
    if metric.startswith(prefix):
      judged = OF_JUDGES if 'teacher' in stage.asked and not evaluation.decoding.rules else ()
      known = [*evaluation.reported, *judged]
      if metric.removeprefix(prefix) not in known:
        raise ValueError(f'{told} the evaluation {evaluation.label} reports {known}.')
      return
  raise ValueError(f'{told} the evaluations of this experiment report {prefixes}.')
