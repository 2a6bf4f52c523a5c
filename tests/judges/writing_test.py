"""A teacher that writes reads its own prompt, and a row that it finishes inside its prefix has a text."""

import dataclasses

import numpy as np
import pytest
import tiny_runs as runs

from opd_jax import judges, rollouts
from opd_jax.data.problems import question
from opd_jax.inference.decoding import Decoding
from opd_jax.inference.guided import Blend
from opd_jax.inference.sampler import Sampling
from opd_jax.methods import seqkd
from opd_jax.ramps import Ramp
from opd_jax.sharding import mesh_layout
from opd_jax.training import verbs
from opd_jax.training.state import RunPosition
from opd_jax.types import NOBODY, STUDENT, TEACHER

START = RunPosition()


def written(folder, judge, **changes):
  runtime, state = runs.at_work(folder, {'teacher': judge}, **changes)
  problems = runtime.stream().take(4)
  return runtime, verbs.sample(runtime, state.weights, problems, START)


def test_a_teacher_that_writes_reads_its_own_prompt(tmp_path):
  weights = runs.teacher_folder(tmp_path)
  more = lambda scene: question(scene.problem.messages[0]['content'] + '9')
  texts = {}
  for name, options in (('plain', {}), ('privileged', {'context': more})):
    _, responses = written(tmp_path, judges.frozen(weights, **options), method=seqkd.seqkd())
    texts[name] = responses.texts
    rollout = responses.rollout
    assert (rollout.writer[rollout.mask] == TEACHER).all()
    assert rollout.prompt.length.max() < 20  # the rollout keeps the student's prompt
  assert texts['plain'] != texts['privileged']
  nothing = judges.frozen(weights, context=lambda scene: None)
  with pytest.raises(ValueError, match=r'its context shows it nothing for 8 rows, e\.g\. sums'):
    written(tmp_path, nothing, method=seqkd.seqkd())


def test_a_row_that_the_teacher_finishes_in_its_prefix_is_verified_and_does_not_count(tmp_path):
  """Every row is long enough for the teacher to end it: the verifier reads what the teacher wrote."""
  weights, seen = runs.teacher_folder(tmp_path), []

  def verify(problem, text):
    seen.append(text)
    return float(len(text))

  task = dataclasses.replace(runs.sums.sums(), verify=verify)
  sampling = Sampling(budget=40, slots=4)
  mix = rollouts.student(prefix=39)
  _, responses = written(
    tmp_path, judges.frozen(weights), task=task, rollout=mix, sampling=sampling
  )
  rollout = responses.rollout
  finished = ~rollout.mask.any(axis=1)
  assert finished.any()
  assert (rollout.writer[finished] == TEACHER).any(axis=1).all()
  lengths = (rollout.writer != NOBODY).sum(axis=1)
  np.testing.assert_array_equal(rollout.lengths, lengths)
  assert (rollout.reward[finished & (lengths > 8)] > 0).all() and seen == responses.texts


def test_a_prefix_is_told_apart_from_padding(tmp_path):
  mix = rollouts.student(prefix=Ramp(begin=4, end=0, steps=10), stop_after=9)
  _, responses = written(tmp_path, judges.frozen(runs.teacher_folder(tmp_path)), rollout=mix)
  rollout = responses.rollout
  long = rollout.lengths == 9
  assert long.any()
  np.testing.assert_array_equal(rollout.writer[long, :4], TEACHER)
  np.testing.assert_array_equal(rollout.writer[long, 4:9], STUDENT)
  assert (rollout.writer[:, 9:] == NOBODY).all() and not rollout.mask[:, :4].any()


def test_a_stage_may_write_otherwise_than_its_method(tmp_path):
  _, responses = written(
    tmp_path, judges.frozen(runs.teacher_folder(tmp_path)), rollout=rollouts.teacher()
  )
  assert (responses.rollout.writer[responses.rollout.mask] == TEACHER).all()
  with pytest.raises(ValueError, match='the teacher is to write, and there is no judge'):
    runs.at_work(tmp_path, {}, rollout=rollouts.teacher())


def test_the_student_writes_beside_the_teacher_and_a_schedule_compiles_once(tmp_path):
  from opd_jax.inference import decode_programs

  judge = judges.frozen(runs.teacher_folder(tmp_path))
  rules = Decoding(rules=(Blend(Ramp(begin=1.0, end=0.0, steps=4)),))
  sampling = Sampling(budget=12, slots=8, decoding=rules)
  runtime, state = runs.at_work(
    tmp_path, {'teacher': judge}, rollout=rollouts.student(beside='teacher'), sampling=sampling
  )
  plain, _ = runs.at_work(tmp_path, {'teacher': judge}, sampling=Sampling(budget=12, slots=8))
  problems = runtime.stream().take(4)
  texts = lambda runtime, step: (
    verbs.sample(runtime, state.weights, problems, RunPosition(stage_step=step)).texts
  )
  ends, compiled = {}, []
  for step in (0, 1, 2, 4):
    ends[step] = texts(runtime, step)
    compiled.append(decode_programs.decode._cache_size())
  assert len(set(compiled)) == 1
  assert ends[4] == texts(plain, 0) != ends[0]  # at its end the student writes alone
  teacher, _ = runs.at_work(
    tmp_path, {'teacher': judge}, rollout=rollouts.teacher(), sampling=Sampling(budget=12, slots=8)
  )
  assert ends[0] == texts(teacher, 0)


def test_a_second_model_elsewhere_is_refused_in_words(tmp_path):
  mix = rollouts.student(beside='teacher')
  weights = runs.teacher_folder(tmp_path)
  away = judges.frozen(weights, layout=mesh_layout(tensor=2))
  with pytest.raises(ValueError, match='the teacher lies on another mesh'):
    written(tmp_path, away, rollout=mix)
  other = judges.frozen(weights, context=lambda scene: question('1'))
  with pytest.raises(ValueError, match='the teacher is shown another prompt'):
    written(tmp_path, other, rollout=mix)
