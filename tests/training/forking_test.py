"""Forks: rows that leave a response are written, scored and trained as rows are, and the others do not notice."""

import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest
import tiny_runs as runs

from opd_jax import forks, judges
from opd_jax.forks import Forking, Forks
from opd_jax.inference import scorer
from opd_jax.losses.divergences import ReverseKL
from opd_jax.losses.normalisers import per_token
from opd_jax.losses.supports import FULL
from opd_jax.losses.terms import DivergenceTerm, Likelihood
from opd_jax.method import Requirements, targets_of
from opd_jax.methods import opd
from opd_jax.training import forking, gradient, scoring, verbs
from opd_jax.training.state import RunPosition
from opd_jax.types import STUDENT, TEACHER, ScoreRequest

AT = 2


def plan(evidence):
  """Three forks of every row: the student's, the teacher's, and one behind a token that the method names."""
  rows = jnp.arange(len(evidence.mask))
  long_enough = evidence.mask[:, AT]
  row = jnp.where(long_enough, rows, -1)
  every = lambda *parts: (
    jnp.stack(jnp.broadcast_arrays(*parts), axis=1).reshape(-1).astype(jnp.int32)
  )
  return Forks(
    row=every(row, row, row),
    at=every(rows * 0 + AT, AT, AT),
    first=every(rows * 0 - 1, -1, 7),
    writer=every(rows * 0 + STUDENT, TEACHER, TEACHER),
  )


def method(weight: float, writers=('student', 'teacher')):
  def weigh(evidence):
    own = per_token(forks.without_forks(evidence.mask, evidence.forks))
    if evidence.forks is None:
      return (Likelihood()(own),)
    other = evidence.mask & ~(own != 0)
    return Likelihood()(own), Likelihood()(weight * per_token(other))

  forking = Forking(plan=plan, tokens=3, writers=writers)
  needs = Requirements(student=ScoreRequest(entropy=True))  # so that the student is scored
  return dataclasses.replace(opd.opd(), weigh=weigh, forks=forking, needs=needs)


@pytest.fixture(scope='module')
def batch(tmp_path_factory):
  folder = tmp_path_factory.mktemp('forks')
  teacher = {'teacher': judges.frozen(runs.teacher_folder(folder))}
  runtime, state = runs.at_work(folder, teacher, method=method(0.0))
  stream, position = runtime.stream(), RunPosition()
  responses = verbs.sample(runtime, state.weights, stream.take(4), position)
  evidence = verbs.score(runtime, state.weights, responses, position)
  return folder, runtime, state, responses, evidence


def test_a_fork_begins_as_its_row_and_counts_from_where_it_leaves_it(batch):
  _, _, _, responses, evidence = batch
  rollout, rows = evidence.rollout, len(responses.problems)
  assert len(rollout.response) == 4 * rows and len(evidence.forks.row) == 3 * rows
  np.testing.assert_array_equal(
    rollout.response[:rows, : responses.rollout.response.shape[1]], responses.rollout.response
  )
  assert (evidence.forks.row >= 0).any()
  for number, (row, first) in enumerate(
    zip(evidence.forks.row, evidence.forks.first, strict=True), start=rows
  ):
    if row < 0:
      assert not rollout.mask[number].any()
      continue
    np.testing.assert_array_equal(rollout.response[number, :AT], rollout.response[row, :AT])
    np.testing.assert_array_equal(rollout.prompt.tokens[number], rollout.prompt.tokens[row])
    assert not rollout.mask[number, :AT].any() and rollout.mask[number, AT]
    assert first < 0 or rollout.response[number, AT] == first
    assert rollout.mask[number].sum() <= 3 + (first >= 0)
    assert (
      np.isnan(rollout.reward[number]) and rollout.prompt.group[number] == rollout.prompt.group[row]
    )


def test_what_wrote_a_fork_agrees_with_what_scores_it(batch):
  _, runtime, state, responses, evidence = batch
  rows, rollout = len(responses.problems), evidence.rollout
  student = np.asarray(evidence.forks.writer) == STUDENT
  drawn = np.asarray(rollout.mask)[rows:] & np.isfinite(rollout.logp[rows:])
  for who, name in ((student, 'student'), (~student, 'teacher')):
    here = drawn & who[:, None]
    assert here.sum() > 4
    told = np.asarray(evidence.scores[name].logp)[rows:]
    np.testing.assert_allclose(told[here], rollout.logp[rows:][here], atol=1e-4)
  number = rows + int(np.argmax(student & (np.asarray(evidence.forks.row) >= 0)))
  length = int(rollout.lengths[number])
  prompt = rollout.prompt.tokens[number][-int(rollout.prompt.length[number]) :].tolist()
  (alone,) = scorer.score_rows(
    state.params, [prompt], [rollout.response[number, :length].tolist()], config=runtime.config, layout=runtime.layout
  )  # fmt: skip
  np.testing.assert_allclose(
    np.asarray(evidence.scores['student'].logp)[number, :length], alone.logp, atol=1e-4
  )


def test_forks_without_a_coefficient_change_nothing_and_with_one_they_are_learnt(batch):
  folder, runtime, _, responses, _ = batch
  teacher, position = dict(runtime.stage.judges), RunPosition()

  def gradient_norm(weight, **changes):
    changed = dataclasses.replace(method(weight), **changes)
    other, own = runs.at_work(folder, teacher, method=changed)  # the same weights each time
    evidence = verbs.score(other, own.weights, responses, position)
    weighed, _ = verbs.weigh(other, own.weights, evidence)
    return verbs.update(other, own, weighed, dry=True)[1]['grad_norm']

  plain = gradient_norm(0.0, forks=None)
  assert abs(gradient_norm(0.0) - plain) < 1e-5 * plain
  assert abs(gradient_norm(1.0) - plain) > 1e-2 * plain


def gradient_of(runtime, state, evidence, batch):
  """Of a batch as it is, and as it would be with all its forks."""
  targets = targets_of(evidence, scoring.heads_of(runtime, state.weights, evidence))
  whole = gradient.Batch(evidence.rollout, evidence.mask, targets, runtime.weigh(evidence))
  settings = {'config': runtime.config, 'layout': runtime.layout, 'diagnose': 'teacher'}
  return [gradient.gradient(state.params, each, **settings)[0] for each in (batch, whole)]


def test_only_forks_that_some_term_weighs_go_through_the_update(batch):
  """None of a method that only looks at them; those of one writer of three where only these are taught."""
  folder, first, _, responses, _ = batch
  plain, position = method(0.0), RunPosition()

  def student_forks_only(evidence):
    own, *rest = method(1.0).weigh(evidence)
    if evidence.forks is None:
      return (own,)
    theirs = evidence.rollout.writer != STUDENT
    return own, rest[0]._replace(coefficient=jnp.where(theirs, 0.0, rest[0].coefficient))

  for weigh, some in ((plain.weigh, False), (student_forks_only, True)):
    changed = dataclasses.replace(plain, weigh=weigh)
    runtime, state = runs.at_work(folder, dict(first.stage.judges), method=changed)
    evidence = verbs.score(runtime, state.weights, responses, position)
    weighed, _ = verbs.weigh(runtime, state.weights, evidence)
    rows, whole = len(responses.problems), len(evidence.mask)
    there = int((np.asarray(evidence.forks.row)[::3] >= 0).sum()) if some else 0
    assert there + rows <= len(weighed.rollout.mask) < whole / 2 + 1
    assert len(weighed.rollout.mask) == len(weighed.terms[0].coefficient)
    np.testing.assert_array_equal(weighed.rollout.response[:rows], evidence.rollout.response[:rows])
    short, long = gradient_of(runtime, state, evidence, weighed)
    assert runs.closeness(short.gradient, long.gradient) < 1e-5
    np.testing.assert_allclose(short.loss, long.loss, rtol=1e-5)
    assert verbs.updates(runtime, state, responses, evidence, weighed, position)[1][
      'tokens'
    ] == int(np.asarray(evidence.rollout.mask).sum())


@pytest.mark.parametrize('microbatches', [1, 8])
def test_terms_are_measured_once_of_every_row(batch, monkeypatch, microbatches):
  folder, first, _, responses, _ = batch
  term = DivergenceTerm(divergence=ReverseKL(), support=FULL)
  changed = dataclasses.replace(method(0.0), needs=Requirements(measures={'gap': term}))
  settings = {'method': changed, 'microbatches': microbatches}
  runtime, state = runs.at_work(folder, dict(first.stage.judges), **settings)
  seen, measured = [], gradient._measured
  count = lambda params, piece, **options: (
    seen.append(len(piece.rollout.mask)) or measured(params, piece, **options)
  )
  monkeypatch.setattr(gradient, '_measured', count)
  evidence = verbs.score(runtime, state.weights, responses, RunPosition())
  assert sum(seen) == len(evidence.mask)
  again = scoring.evidence_of(
    runtime, state.weights, evidence.rollout, evidence.scores, scoring.Moment(RunPosition(), None)
  )
  got, want = evidence.measures['gap'], again.measures['gap']
  assert np.abs(want[len(responses.problems) :]).max() > 0.01
  np.testing.assert_allclose(got, want, atol=1e-5)


def test_a_fork_behind_the_end_of_its_row_is_refused_by_name(batch):
  folder, first, _, responses, _ = batch

  def blind(evidence):
    last = evidence.mask.shape[1] + 1
    return plan(evidence)._replace(at=jnp.full(3 * len(evidence.mask), last, jnp.int32))

  reckless = Forking(plan=blind, tokens=2, writers=('student', 'teacher'))
  changed = dataclasses.replace(method(0.0), forks=reckless)
  runtime, state = runs.at_work(folder, dict(first.stage.judges), method=changed)
  words = r'stage distil: the method \(Thinking .*\): fork 0 of 24 leaves row 0, which has \d+ tok'
  with pytest.raises(ValueError, match=words):
    verbs.score(runtime, state.weights, responses, RunPosition())


@pytest.mark.parametrize(
  'row, at, stopped, words',
  [
    (0, 3, False, None),  # goes on behind a response that was cut off
    (0, 2, True, None),  # in the place of its stop token
    (0, 3, True, r'fork 1 of 2 leaves row 0, which has 3 tokens, at token 3'),
    (0, 4, False, r'leaves row 0, which has 3 tokens, at token 4\. A fork that does not exist'),
    (1, 0, False, None),
    (1, 0, True, r'leaves row 1, which has 0 tokens'),
    (0, -1, False, r'at token -1'),
    (2, 0, False, r'leaves row 2, of 2, at token 0'),
    (-1, 99, True, None),
  ],
)
def test_where_a_fork_may_leave(row, at, stopped, words):
  number = lambda *values: np.array(values, np.int32)
  planned = Forks(number(-1, row), number(0, at), number(-1, -1), number(STUDENT, STUDENT))
  check = lambda: forks.check_places(planned, number(3, 0), np.array([stopped] * 2), where='here')
  if words is None:
    return check()
  with pytest.raises(ValueError, match=f'here: .*{words}'):
    check()


def test_a_run_with_forks_is_looked_at_before_step_0_and_trains(tmp_path):
  distil = {'method': method(0.5)}
  experiment = runs.experiment(tmp_path, distil=distil)
  experiment = dataclasses.replace(experiment, stages=experiment.stages[1:], evaluations=())
  whole = runs.run(experiment, tmp_path / 'whole', skip_preflight=False)
  assert whole.finished and all(
    np.isfinite(row['loss']) for row in runs.metrics_of(tmp_path / 'whole')
  )


def test_refusals(tmp_path):
  stage = runs.experiment(tmp_path).stages[1]
  with pytest.raises(ValueError, match='forks stay with the whole batch: minibatches must be 1'):
    dataclasses.replace(stage, method=method(0.0), minibatches=2)
  with pytest.raises(ValueError, match='the teacher is to write'):
    dataclasses.replace(stage, method=method(0.0), judges={})
  with pytest.raises(ValueError, match='tokens must be at least 1'):
    Forking(plan=plan, tokens=0)


def test_points_are_the_best_of_a_row_and_keep_their_distance():
  score = jnp.array([[5.0, 4.0, 1.0, 3.0, 9.0], [1.0, 2.0, 3.0, 4.0, 5.0]])
  mask = jnp.array([[True, True, True, True, False], [True, False, False, False, False]])
  at, there = forks.best_points(score, mask, count=2, gap=2)
  assert at.tolist()[0] == [0, 3] and there.tolist() == [[True, True], [True, False]]
  assert at[1, 0] == 0


def test_a_teacher_of_a_wider_table_writes_what_the_student_has_and_rows_stay_in_its_positions(
  tmp_path,
):
  weights = runs.teacher_folder(tmp_path, vocab_size=64)
  runtime, state = runs.at_work(tmp_path, {'teacher': judges.frozen(weights)}, method=method(1.0))
  position = RunPosition()
  responses = verbs.sample(runtime, state.weights, runtime.stream().take(4), position)
  least = int(responses.rollout.prompt.length.max()) + AT  # no room behind the longest prompt
  model = dataclasses.replace(runtime.experiment.model, max_positions=least)
  known = dataclasses.replace(runtime.experiment, model=model)
  short = dataclasses.replace(runtime, experiment=known)
  moment, scenes = scoring.Moment(position, None), runtime.scenes(responses, position)
  evidence = scoring.evidence_of(
    runtime,
    state.weights,
    responses.rollout,
    scoring.scores_of(runtime, state.weights, responses.rollout, scenes),
    moment,
  )
  planned = Forks(*map(np.asarray, runtime.plan_forks(evidence)))
  for each, table in ((runtime, runtime.config.max_positions), (short, least)):
    rows = forking.write(each, state.weights, responses, scenes, planned, moment)
    behind = rows.lengths > AT + (planned.first >= 0)  # somebody wrote behind what was given
    assert rows.response.max() < runs.CONFIG.vocab_size
    assert (rows.lengths + rows.prompt.length)[behind].max(initial=0) <= table
  assert behind.sum() < (planned.row >= 0).sum()  # the short table leaves some without room


def test_a_teacher_writes_forks_behind_the_prompt_that_it_judges_them_with(tmp_path):
  def context(scene):
    *before, last = scene.problem.messages
    return (*before, {**last, 'content': last['content'] + str(len(scene.text) % 7)})

  teacher = judges.frozen(runs.teacher_folder(tmp_path), context=context)
  runtime, state = runs.at_work(tmp_path, {'teacher': teacher}, method=method(0.0))
  responses = verbs.sample(runtime, state.weights, runtime.stream().take(4), RunPosition())
  evidence = verbs.score(runtime, state.weights, responses, RunPosition())
  rows = len(responses.problems)
  theirs = (np.asarray(evidence.forks.writer) == TEACHER)[:, None]
  drawn = (
    np.asarray(evidence.rollout.mask)[rows:] & np.isfinite(evidence.rollout.logp[rows:]) & theirs
  )
  told = np.asarray(evidence.scores['teacher'].logp)[rows:]
  assert drawn.sum() > 4
  np.testing.assert_allclose(told[drawn], evidence.rollout.logp[rows:][drawn], atol=1e-4)
