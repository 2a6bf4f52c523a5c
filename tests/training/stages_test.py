"""Stages, batches and folders: what moves is kept, what is wrong is found before it costs."""

import dataclasses
import json
import math
import subprocess
import sys
import textwrap

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny_runs as runs

from opd_jax import judges, rollouts
from opd_jax.claims import Nothing
from opd_jax.commands import train
from opd_jax.data.mixture import mixture
from opd_jax.data.templates import Template
from opd_jax.losses import weights
from opd_jax.losses.normalisers import per_token
from opd_jax.losses.terms import PolicyGradient
from opd_jax.method import Method, Requirements
from opd_jax.methods import gkd, iw_opd, opd, seqkd, sft
from opd_jax.storage import orbax_folder
from opd_jax.training import inspection, recorder, verbs
from opd_jax.training.runtime import build_runtime
from opd_jax.training.state import RunPosition
from opd_jax.training.workdir import locked
from opd_jax.types import ScoreRequest

START = RunPosition()


def test_every_stage_has_an_order_of_its_own_and_the_first_keeps_the_seeds(tmp_path):
  known = runs.experiment(tmp_path)
  first, second = (build_runtime(known, number).stream().take(6) for number in (0, 1))
  assert [problem.name for problem in first] != [problem.name for problem in second]
  again = build_runtime(known, 1).stream().take(6)
  assert [problem.name for problem in second] == [problem.name for problem in again]


def test_a_judge_that_is_wrong_in_a_later_stage_is_found_before_step_0(tmp_path):
  strange = runs.teacher_folder(tmp_path / 'b', strings=[f'w{number}' for number in range(22)])
  known = runs.experiment(tmp_path, distil={'judges': {'teacher': judges.frozen(strange)}})
  with pytest.raises(
    ValueError, match=r'stage distil: judge teacher .* does not share a vocabulary'
  ):
    runs.run(known, tmp_path / 'run')
  assert not (tmp_path / 'run' / 'metrics.jsonl').exists()
  missing = runs.experiment(tmp_path, distil={'judges': {'teacher': judges.frozen('./no/where')}})
  with pytest.raises(ValueError, match=r'stage distil: hub: \./no/where is not a folder'):
    runs.run(missing, tmp_path / 'run')


def test_a_method_that_reads_what_it_did_not_ask_for_is_refused_before_step_0(tmp_path):
  def weigh(evidence):
    return (PolicyGradient()(per_token(evidence.mask) * evidence.teacher.entropy),)

  lazy = Method(weigh=weigh, paper='none', rollout=rollouts.student(), claim=Nothing('a test'))
  with pytest.raises(
    ValueError, match=r"reads 'entropy' of the teacher.*ScoreRequest\(entropy=True"
  ):
    runs.run(runs.experiment(tmp_path, distil={'method': lazy}), tmp_path / 'run')


def test_problems_that_cannot_be_used_are_found_before_step_0_and_named(tmp_path):
  """In a later stage, behind its first problem, by the message of a row and not by a traceback of a template."""
  made = runs.sums.sums(**runs.WORLD)

  def changed(numbers, **changes):
    rows = [made.source[number] for number in numbers]
    read = lambda raw: made.read(raw)._replace(**(changes if raw in rows else {}))
    return dataclasses.replace(made, read=read)

  says = lambda text: ({'role': 'user', 'content': text},)
  plain, taught = Template(chat=False), {'method': sft.sft()}
  for name, task, words, changes in (
    ('turns', changed([0], messages=2 * says('1')), r'problem 0: Template: several messages', {}),
    ('strange', changed([3], messages=says('x')), r"problem 3: .*'x'", {}),
    (
      'long',
      changed([2], messages=says(runs.CONFIG.max_positions * '1')),
      r'problem 2: prompt and response have',
      {},
    ),
    ('untaught', changed([1], demonstration=None), r'problem 1: it has no response', taught),
  ):
    distil = {'task': task, 'template': plain, **changes}
    with pytest.raises(ValueError, match=rf'stage distil: data: sums \(train\), {words}'):
      runs.run(runs.experiment(tmp_path, distil=distil), tmp_path / name)
    assert not (tmp_path / name / 'metrics.jsonl').exists()
  none = dataclasses.replace(changed(range(5), messages=says('x')), on_bad_row='skip')
  none = dataclasses.replace(none, source=runs.sums.sums(size=5, **runs.WORLD).source)
  with pytest.raises(
    ValueError, match=r'no row of the task sums can be used: one of 5 bad ones is .* problem 0: '
  ):
    runs.run(runs.experiment(tmp_path, distil={'task': none, 'template': plain}), tmp_path / 'none')


def test_two_runs_in_one_folder_are_refused_and_a_killed_one_leaves_no_lock(tmp_path):
  program = textwrap.dedent(f"""
    import sys, time
    from pathlib import Path
    from opd_jax.training.workdir import locked
    with locked(Path({str(tmp_path)!r})):
      print('locked', flush=True)
      time.sleep(60)
  """)
  other = subprocess.Popen([sys.executable, '-c', program], stdout=subprocess.PIPE, text=True)
  try:
    assert other.stdout and other.stdout.readline() == 'locked\n'
    with (
      pytest.raises(ValueError, match=f'another run is at work in .*: process {other.pid} on'),
      locked(tmp_path),
    ):
      pass
  finally:
    other.kill()
    other.communicate()
  said = []
  for _ in range(2):  # the second time nobody is left behind
    with locked(tmp_path, say=said.append):
      pass
  assert len(said) == 1 and f'left behind by process {other.pid} on' in said[0]


def test_the_student_is_written_while_the_folder_is_locked(tmp_path, monkeypatch):
  """Another run that begins when the last step is done would train in the folder that this one still writes into."""
  save, refusals = orbax_folder.save, []

  def saved(folder, *args, **options):
    with pytest.raises(ValueError, match='another run is at work in') as refusal, locked(tmp_path):
      pass
    refusals.append(refusal)
    save(folder, *args, **options)

  known = runs.experiment(tmp_path / 'teacher', evaluations=())
  known = dataclasses.replace(known, stages=known.stages[:1])
  monkeypatch.setattr(orbax_folder, 'save', saved)
  assert train.train(known, '', workdir=tmp_path, skip_preflight=True) == 0
  assert len(refusals) == 1 and (tmp_path / train.STUDENT).is_dir()
  with locked(tmp_path):
    pass


def test_text_of_the_teacher_is_not_taken_for_the_students_own_numbers(tmp_path):
  """SeqKD asks no judge; the student's log-probabilities of the teacher's text are unknown, not the teacher's."""
  judge = judges.frozen(runs.teacher_folder(tmp_path))
  runtime, state = runs.at_work(tmp_path, {'teacher': judge}, method=seqkd.seqkd())
  responses = verbs.sample(runtime, state.weights, runtime.stream().take(4), START)
  evidence = verbs.score(runtime, state.weights, responses, START)
  assert np.isnan(np.asarray(evidence.scores['student'].logp)).all()
  _, survey = verbs.weigh(runtime, state.weights, evidence)
  assert np.isnan(survey['log_ratio'])


def test_metrics_are_json_also_where_a_number_is_not_finite(tmp_path):
  recorded = recorder.Recorder(tmp_path, begin=-1, is_writer=True)
  recorded.row({'step': 1, 'loss': math.nan, 'curve': [1.0, math.inf], 'nested': {'x': -math.inf}})
  recorded.close()
  text = (tmp_path / 'metrics.jsonl').read_text()
  refuse = lambda name: pytest.fail(f'{name} is no JSON')
  row = json.loads(text, parse_constant=refuse)
  assert row == {'step': 1, 'loss': None, 'curve': [1.0, None], 'nested': {'x': None}}


def batch_of(tmp_path, **changes):
  judge = judges.frozen(runs.teacher_folder(tmp_path))
  runtime, state = runs.at_work(tmp_path, {'teacher': judge}, **changes)
  responses = verbs.sample(runtime, state.weights, runtime.stream().take(4), START)
  evidence = verbs.score(runtime, state.weights, responses, START, state.memory)
  batch, _ = verbs.weigh(runtime, state.weights, evidence)
  return runtime, state, responses, evidence, batch


def test_minibatches_are_unbiased_parts_of_the_whole(tmp_path):
  """At fixed weights the mean of the minibatches' gradients is the whole gradient, in loss and norm of the sum."""
  runtime, state, responses, evidence, batch = batch_of(tmp_path, minibatches=2)
  whole = verbs.gradient.gradient(
    state.params, batch, config=runtime.config, layout=runtime.layout
  )[0]
  halves = [
    verbs.gradient.gradient(
      state.params, batch, config=runtime.config, layout=runtime.layout, rows=rows
    )[0]
    for rows in np.split(np.arange(8), 2)
  ]
  total = jax.tree.map(lambda a, b: a + b, halves[0].gradient, halves[1].gradient)
  assert runs.closeness(total, whole.gradient) < 1e-5
  after, row = verbs.updates(runtime, state, responses, evidence, batch, START)
  assert 'loss_last' in row and after.optimiser[1][0].count == 2
  with pytest.raises(ValueError, match='4 prompts cannot be dealt to 3 minibatches'):
    runs.at_work(tmp_path, {}, minibatches=3)


def test_a_method_that_reweighs_sees_the_student_as_it_is_by_then(tmp_path):
  seen = []

  def weigh(evidence):
    jax.debug.callback(lambda logp: seen.append(np.array(logp)), evidence.student.logp)
    gap = evidence.teacher.logp - evidence.student.logp
    return (PolicyGradient()(per_token(evidence.mask) * gap),)

  for reweigh in (False, True):
    method = dataclasses.replace(opd.opd(), weigh=weigh, reweigh=reweigh)
    state_of = batch_of(tmp_path, method=method, updates=2)
    seen.clear()
    verbs.updates(*state_of, START)
    jax.effects_barrier()
    assert len(seen) == reweigh
    if reweigh:
      before = np.asarray(state_of[3].scores['student'].logp)
      mask = state_of[3].rollout.mask
      assert np.abs(seen[0] - before)[mask].max() > 1e-6


def test_text_of_older_weights_is_refused_unless_its_age_is_corrected_for(tmp_path):
  """A loop that samples ahead learns from what an earlier student wrote."""

  def weigh(evidence):
    student = evidence.student.logp
    ratio = weights.truncated_importance(student, evidence.rollout.behaviour_logp)
    gap = evidence.teacher.logp - student
    return (PolicyGradient()(per_token(evidence.mask) * ratio * gap),)

  later = START._replace(stage_step=1, step=1)
  parts = batch_of(tmp_path)
  with pytest.raises(ValueError, match=r'weights of version 0 wrote it, those of version 1 are to'):
    verbs.updates(*parts, later)
  parts = batch_of(tmp_path, method=dataclasses.replace(opd.opd(), weigh=weigh))
  _, row = verbs.updates(*parts, later)
  assert np.isfinite(row['loss'])


def test_several_updates_that_a_method_does_not_correct_for_are_said_before_step_0(tmp_path):
  def said(**distil):
    told = []
    inspection.check(runs.experiment(tmp_path, distil=distil), told.append)
    return told

  (warning,) = said(method=opd.opd(), updates=2, minibatches=2)
  assert 'stage distil: 4 updates are made of each batch, and PolicyGradient()' in warning
  assert 'ClippedRatio' in warning and 'truncated_importance' in warning
  for distil in (
    {'method': opd.opd()},
    {'method': iw_opd.iw_opd(), 'updates': 2},
    {'method': sft.sft(), 'updates': 2},
    {'method': gkd.gkd(), 'minibatches': 2},
  ):
    assert said(**distil) == []


def counting() -> Method:
  """Weighs by how many batches it has seen, and remembers their tokens."""

  def weigh(evidence):
    return (PolicyGradient()(per_token(evidence.mask) * evidence.memory['batches']),)

  def remember(evidence):
    memory = evidence.memory
    return {
      'batches': memory['batches'] + 1,
      'tokens': memory['tokens'] + evidence.mask.sum(),
    }

  return Method(
    weigh=weigh,
    paper='none',
    rollout=rollouts.student(),
    claim=Nothing('a test'),
    needs=Requirements(teacher=ScoreRequest()),
    memory={'batches': jnp.float32(0), 'tokens': jnp.int32(0)},
    remember=remember,
  )


class Power(Exception):
  """The plug is pulled."""


def test_what_a_method_remembers_is_in_the_checkpoint(tmp_path):
  known = runs.experiment(tmp_path, distil={'method': counting()}, checkpoint_every=1)
  whole = runs.run(known, tmp_path / 'whole')
  assert float(whole.state.memory['batches']) == 3 and int(whole.state.memory['tokens']) > 0
  rows = [row for row in runs.metrics_of(tmp_path / 'whole') if 'loss' in row]
  assert rows[3]['loss'] == 0 and rows[4]['loss'] != 0

  def pull(done, total, text):
    if done == 5:
      raise Power

  with pytest.raises(Power):
    runs.run(known, tmp_path / 'cut', listener=runs.loop.Listener(lambda text: None, pull))
  resumed = runs.run(known, tmp_path / 'cut')
  assert runs.digest_of(resumed) == runs.digest_of(whole)


def test_a_moving_rate_of_a_self_teacher_follows_its_ramp(tmp_path):
  from opd_jax.ramps import Ramp

  refresh = judges.ema(rate=Ramp(begin=0.0, end=1.0, steps=2))
  distil = {'method': opd.opd(), 'judges': {'teacher': judges.itself(refresh=refresh)}, 'steps': 2}
  known = runs.experiment(tmp_path, distil=distil, checkpoint_every=1)
  state = runs.run(dataclasses.replace(known, stages=known.stages[1:]), tmp_path / 'run').state
  assert (
    runs.closeness(state.snapshots['teacher'], state.params) == 0
  )  # rate 1 after the second step


def test_a_mixture_of_tasks_routes_its_rows_to_judges_and_verifiers(tmp_path):
  """Two tasks as one: each row is scored by the judge of its task and verified by its verifier."""
  near = runs.sums.sums()
  far = dataclasses.replace(runs.sums.sums(largest=3, seed=1), verify=lambda problem, text: 7.0)
  mixed = mixture({'near': near, 'far': far}, weights={'near': 1.0, 'far': 1.0})
  one, two = (
    judges.frozen(runs.teacher_folder(tmp_path / str(seed), seed=seed)) for seed in (5, 6)
  )
  teacher = judges.routed(near=one, far=two)
  runtime, state = runs.at_work(tmp_path, {'teacher': teacher}, task=mixed)
  responses = verbs.sample(runtime, state.weights, runtime.stream().take(4), START)
  far_rows = np.array([problem.route == 'far' for problem in responses.problems])
  assert 0 < far_rows.sum() < 8
  np.testing.assert_array_equal(responses.rollout.reward == 7.0, far_rows)
  evidence = verbs.score(runtime, state.weights, responses, START)
  assert np.isfinite(np.asarray(evidence.scores['teacher'].logp)).all()
  batch, _ = verbs.weigh(runtime, state.weights, evidence)
  assert np.isfinite(verbs.update(runtime, state, batch)[1]['loss'])
