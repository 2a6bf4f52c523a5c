"""Floor 5. Scores of some rows by the student and the judges of a stage, and the evidence that they make."""

from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any, NamedTuple

import jax
import numpy as np

from opd_jax.data.prompts import unpadded
from opd_jax.forks import Forks
from opd_jax.judges.scenes import Scene
from opd_jax.method import Evidence, targets_of
from opd_jax.processes import to_host
from opd_jax.training import gradient
from opd_jax.training.gradient import Batch
from opd_jax.training.runtime import StageRuntime
from opd_jax.training.state import RunPosition
from opd_jax.types import AnyArray, Rollout, Scores, Weights

NOTHING: Mapping[str, Any] = MappingProxyType({})


class Moment(NamedTuple):
  """When evidence is made."""

  position: RunPosition
  memory: Any  # of the method


Begun = Callable[[], Scores]  # hands out scores that were begun before


def scores_of(
  runtime: StageRuntime,
  weights: Weights,
  rollout: Rollout,
  scenes: Sequence[Scene],
  begun: Mapping[str, Begun] = NOTHING,
) -> dict[str, Scores]:
  """What the student and every judge think of some rows.

  Args:
    runtime, weights: of the moment.
    rollout: the rows.
    scenes: what contexts may show of each.
    begun: of judges, or of the student, that have begun already.
  """
  own = begun.get('student', lambda: student_scores(runtime, weights, rollout))
  scores = {'student': own()}
  top, ids = scores['student'].top_k, None
  if top is not None and any(each.at_student_top_k for each in runtime.requests.values()):
    ids = to_host(top.ids)  # a judge may lie elsewhere
  for name, judge in runtime.judges.items():
    if name in begun:
      scores[name] = begun[name]()
      continue
    request = runtime.requests[name]
    wanted = request.at_student_top_k
    asked = ids[..., :wanted] if ids is not None and wanted else None
    with runtime.clock.waiting(name):
      scores[name] = judge.score(weights, scenes, rollout, asked, request)
      if name in runtime.apart:
        jax.block_until_ready(scores[name])
  return scores


def evidence_of(
  runtime: StageRuntime,
  weights: Weights,
  rollout: Rollout,
  scores: Mapping[str, Scores],
  moment: Moment,
  forks: Forks | None = None,
  measures: Mapping[str, AnyArray] | None = None,
) -> Evidence:
  """Evidence of some rows, with the terms that the method reads before it weighs.

  Args:
    measures: values of these terms where they are known already, in the first rows.
  """
  needs, position = runtime.stage.method.needs, moment.position
  evidence = Evidence.of(
    rollout,
    scores,
    needs,
    memory=moment.memory,
    step=np.asarray(position.stage_step, np.int32),
    key=jax.random.fold_in(runtime.weigh_key, position.step),
    forks=forks,
  )
  if not needs.measures:
    return evidence
  targets = targets_of(evidence, heads_of(runtime, weights, evidence))
  known = {} if measures is None else measures
  found = gradient.measured(
    weights.student,
    Batch(rollout, evidence.mask, targets, ()),
    needs.measures,
    config=runtime.config,
    layout=runtime.layout,
    microbatches=runtime.stage.microbatches,
    begin=max((len(each) for each in known.values()), default=0),
  )
  for name, values in known.items():
    found[name][: len(values), : values.shape[1]] = values
  return evidence._replace(measures=found)


def student_scores(runtime: StageRuntime, weights: Weights, rollout: Rollout) -> Scores:
  """Scores the student. Where the method reads none of it: the sampler's log-probabilities, NaN where another wrote."""
  if runtime.scores_student:
    request = runtime.stage.method.needs.of_student
    prompts = unpadded(rollout.prompt)
    return runtime.student.score_prompts(weights, prompts, rollout, None, request)
  known = rollout.by_student & np.isfinite(rollout.logp)  # what a method put in was not drawn
  return Scores(logp=np.where(known, rollout.logp, np.float32(np.nan)), known=known)


def heads_of(runtime: StageRuntime, weights: Weights, evidence: Evidence) -> dict[str, Any]:
  """Output projections of the judges whose hidden states were scored."""
  return {
    name: judge.head(weights)
    for name, judge in runtime.judges.items()
    if evidence.scores[name].hidden is not None
  }
