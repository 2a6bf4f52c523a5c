"""Floor 5. What the method of a stage asks for, against what its judges and its task can give: before any weight."""

from opd_jax.judges import served_spec
from opd_jax.judges.build import check_request, width_of
from opd_jax.judges.scenes import looks_at
from opd_jax.judges.spec import Judge, Served, is_foreign, named_parts, readers
from opd_jax.losses.terms import DivergenceTerm, HiddenDistance
from opd_jax.method import requests_of
from opd_jax.method_reads import judges_read, read_besides, reads_of, rollout_read, stale_terms
from opd_jax.models.config import ModelConfig
from opd_jax.training.experiment import Stage
from opd_jax.types import ScoreRequest


def check_stage(stage: Stage, student: ModelConfig) -> frozenset[str]:
  """The judges that `weigh` reads. Refuses what somebody cannot give, by name, and says what to do."""
  try:
    reads = judges_read(stage.method)
    _there(stage, reads)
    for name in stage.asked:
      check_request(name, stage.judges[name], stage.method.needs.judges[name], student)
    check_request('student', Judge(), stage.method.needs.of_student, student)
    _served(stage, reads)
    _terms(stage, student)
    _writer(stage)
    _mates(stage)
    _reward(stage)
  except ValueError as error:
    raise ValueError(f'stage {stage.name}: {error}') from error
  return reads


def _there(stage: Stage, reads: frozenset[str]) -> None:
  missing = sorted(({*reads} | {*stage.method.needs.others}) - {'student', *stage.judges})
  if missing:
    name = missing[0]
    raise ValueError(
      f"the method reads the {name}'s scores and there is no judge called {name!r}. Bind "
      f'experiment.Stage.judges = {{{name!r}: @judges.{"frozen" if name == "teacher" else "itself"}()}}.'
    )


def _mates(stage: Stage) -> None:
  """A context of other responses to a question needs more than one."""
  for name in stage.asked:
    for _, judge in readers(stage.judges[name]):
      if stage.samples == 1 and looks_at(judge.context) == 'mates':
        raise ValueError(
          f'the context of the judge {name} shows other responses to a question, and each has one. Bind '
          "experiment.Stage.samples (SAMPLES) above 1, or contexts.siblings.feedback = 'always'."
        )


def _terms(stage: Stage, student: ModelConfig) -> None:
  """What a term compares with must have been asked for, and states that are compared must be of one width."""
  needs = stage.method.needs
  widths = {name: width_of(stage.judges[name], student) for name in stage.asked}
  for term, shapes, _ in reads_of(stage.method, {**widths, 'student': student.width}):
    if isinstance(term, DivergenceTerm):
      wanted, asked = requests_of(term)[term.of], needs.judges.get(term.of)
      if asked is None or not _covers(asked, wanted):
        raise ValueError(
          f'the method compares with the {term.of}, {term.name}, and did not ask for what that takes. Name it in the '
          'method: needs=required_by(term).'
        )
    if isinstance(term, HiddenDistance) and shapes['hidden'][-1] != student.width:
      raise ValueError(
        f"the method compares states of width {shapes['hidden'][-1]} with the student's, whose width is "
        f"{student.width}. Bind a judge of the student's width, or a method that compares distributions."
      )


def _served(stage: Stage, reads: frozenset[str]) -> None:
  """What a server does not send."""
  for name in stage.judges:
    for part, judge in named_parts(name, stage.judges[name]):
      if not isinstance(judge, Served):
        continue
      if judge.writes == 'text' and (
        name in reads or name != 'teacher' or not stage.teacher_writes
      ):
        raise ValueError(
          f"judge {part} ({judge.source}): it writes text (writes = 'text') and scores nothing, and the method reads "
          "its scores. Take one that learns from a teacher's text, e.g. experiments/methods/seqkd.gin, or "
          "writes = 'tokens'."
        )
      if name == 'teacher' and stage.whole_diagnosis:
        raise ValueError(
          f'judge {part} ({judge.source}): Stage.whole_diagnosis asks for the whole vocabulary, which a server does '
          'not send. Leave it at False.'
        )


def _covers(asked: ScoreRequest, wanted: ScoreRequest) -> bool:
  """Whether what was asked for holds what is wanted; hidden states hold everything."""
  return asked.hidden or (
    not wanted.hidden
    and asked.top_k >= wanted.top_k
    and asked.at_student_top_k >= wanted.at_student_top_k
  )


def _writer(stage: Stage) -> None:
  """A teacher that writes is one model; behind a server it writes whole rows."""
  teacher = stage.judges.get('teacher')
  if stage.teacher_writes and isinstance(teacher, Served):
    served_spec.check_writes(teacher, stage.mix, stage.sampling.decoding, stage.method.forks)
  if (
    teacher is not None and is_foreign(teacher) and (stage.teacher_writes or stage.whole_diagnosis)
  ):
    wanted = (
      'to write' if stage.teacher_writes else 'to be compared entry by entry (whole_diagnosis)'
    )
    raise ValueError(
      f'the teacher is {wanted}, and it has a tokenizer of its own. Let the student write, leave whole_diagnosis '
      "off, or bind a teacher with the student's tokenizer."
    )
  if stage.teacher_writes and not isinstance(teacher, Judge | Served):
    raise ValueError(
      'the teacher is to write, and several models make this judge. Bind one model as the teacher, '
      "experiment.Stage.judges = {'teacher': @judges.frozen()}, or let the student write."
    )


def _reward(stage: Stage) -> None:
  """Rows may be unverified; a task without any verifier leaves a method without its rewards."""
  wanted = stage.method.needs.reward
  if wanted is None:
    wanted = 'reward' in rollout_read(stage.method) or ('rollout', 'reward') in read_besides(
      stage.method
    )
  if wanted and stage.task.verify is None:
    raise ValueError(
      f'the method weighs responses by their reward, and the task {stage.task.name} has no verifier. Give it one '
      '(problems.Task.verify), or take a method that reads no reward.'
    )


def bias_of_age(stage: Stage) -> str | None:
  """What is wrong with text of older weights, by several updates of a batch or by staleness, under a method that does
  not correct for it."""
  updates = stage.updates * stage.minibatches
  if updates == 1 and not stage.staleness:
    return None
  if not stage.mix.needs_student or not (
    stale := stale_terms(stage.method, written_before=stage.staleness > 0)
  ):
    return None
  several = f'{updates} updates are made of each batch' if updates > 1 else ''
  older = f'batches are written by weights {stage.staleness} older' if stage.staleness else ''
  which = 'all' if stage.staleness else 'all but the first'
  return (
    f'stage {stage.name}: {" and ".join(filter(None, (several, older)))}, and {", ".join(stale)} takes its text for '
    f'that of the present student, so {which} are biased. Take a term with a ratio (ClippedRatio, ImportanceRatio), '
    'or reweigh=True with coefficients times weights.truncated_importance(evidence.student.logp, '
    'evidence.rollout.behaviour_logp), or updates = 1, minibatches = 1 and staleness = 0.'
  )
