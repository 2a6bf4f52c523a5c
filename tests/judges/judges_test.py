"""Judges: other prompts, several of them, and remembered ones tell what a plain one would, at the right positions."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny_runs as runs

from opd_jax import judges
from opd_jax.data.problems import Problem, question
from opd_jax.inference import scorer
from opd_jax.judges import contexts, scenes
from opd_jax.judges.local import LocalJudge
from opd_jax.methods import gkd, opd
from opd_jax.models import transformer
from opd_jax.sharding import mesh_layout
from opd_jax.storage import load
from opd_jax.training import preflight, verbs
from opd_jax.training.state import RunPosition
from opd_jax.types import ScoreRequest

START = RunPosition()


def judged(runtime, state, problems=None):
  problems = runtime.stream().take(4) if problems is None else problems
  responses = verbs.sample(runtime, state.weights, problems, START)
  return responses, verbs.score(runtime, state.weights, responses, START)


def teacher_scores(folder, judge, problems=None, **changes):
  runtime, state = runs.at_work(folder, {'teacher': judge}, **changes)
  responses, evidence = judged(runtime, state, problems)
  return responses, evidence.scores['teacher']


def alone(judge: LocalJudge, weights, prompt, rollout, row):
  """The log-probabilities of one row, scored by itself."""
  n = rollout.lengths[row]
  response = rollout.response[row][:n].tolist()
  params = judge.params(weights)
  (scores,) = scorer.score_rows(
    params, [prompt], [response], config=judge.config, layout=judge.layout
  )
  return scores.logp


def test_a_privileged_judge_is_shown_more_and_tells_about_the_same_tokens(tmp_path):
  seen = []

  def with_answer(scene):
    seen.append(scene)
    return question(scene.problem.messages[0]['content'] + scene.problem.answer)

  judge = judges.frozen(runs.teacher_folder(tmp_path), context=with_answer)
  runtime, state = runs.at_work(tmp_path, {'teacher': judge})
  responses, evidence = judged(runtime, state)
  assert all(len(scene.mates) == 1 and scene.step == 0 for scene in seen)
  texts = [scene.text for scene in seen[:8]]
  assert [scene.mates[0].text for scene in seen[:8]] == [texts[i ^ 1] for i in range(8)]
  local = runtime.judges['teacher']
  for row, problem in enumerate(responses.problems):
    prompt = local.template.render(
      runtime.tokenizer, question(problem.messages[0]['content'] + problem.answer)
    )
    want = alone(local, state.weights, prompt, responses.rollout, row)
    got = np.asarray(evidence.scores['teacher'].logp)[row][responses.rollout.mask[row]]
    np.testing.assert_allclose(got, want, atol=1e-5)


def test_what_a_context_draws_is_the_same_after_a_resume():
  scene = lambda row: scenes.scenes(
    [Problem(question('1+1='))], ['x'], [0.0], [''], groups=[0], rows=[row], seed=3, step=9
  )[0]
  one = scene(5)
  assert one.rng.random() == one.rng.random() == scene(5).rng.random() != scene(6).rng.random()


def test_the_solution_is_shown_behind_the_question_and_nothing_where_there_is_none():
  show = contexts.solution(introduction=' = ')
  problem = Problem(question('1+1='), demonstration='2')
  make = lambda problem: scenes.scenes(
    [problem], ['x'], [0.0], [''], groups=[0], rows=[0], seed=0, step=0
  )[0]
  assert show(make(problem))[-1]['content'] == '1+1= = 2'
  assert show(make(problem._replace(demonstration=None))) is None


def test_rows_without_a_judgement_do_not_count_and_keep_their_rewards(tmp_path):
  only_second = lambda scene: None if scene.problem.name.endswith('0') else scene.problem.messages
  runtime, state = runs.at_work(tmp_path, {'teacher': judges.itself(context=only_second)})
  problems = [Problem(question('1+2='), answer='3', name=f'row {number}') for number in range(4)]
  responses, evidence = judged(runtime, state, problems)
  unknown = np.array([problem.name == 'row 0' for problem in responses.problems])
  assert not evidence.mask[unknown].any() and evidence.mask[~unknown].any(axis=1).all()
  assert responses.rollout.mask.any(axis=1).all() and np.isfinite(evidence.rollout.reward).all()
  batch, _ = verbs.weigh(runtime, state.weights, evidence)
  assert not np.asarray(batch.terms[0].coefficient)[unknown].any()


def routes(problems):
  return [
    problem._replace(route=('even', 'odd')[number % 2]) for number, problem in enumerate(problems)
  ]


def two_judges(folder):
  return tuple(judges.frozen(runs.teacher_folder(folder / str(seed), seed=seed)) for seed in (5, 6))


@pytest.mark.parametrize('method', [opd.opd(), gkd.gkd(student_fraction=1.0)], ids=['opd', 'gkd'])
def test_each_row_goes_to_the_judge_of_its_route_and_to_no_other(tmp_path, method, monkeypatch):
  one, two = two_judges(tmp_path)
  runtime, state = runs.at_work(
    tmp_path, {'teacher': judges.routed(even=one, odd=two)}, method=method
  )
  problems = routes(runtime.stream().take(3)) + routes(runtime.stream().take(1))
  wants = [teacher_scores(tmp_path, judge, problems, method=method)[1] for judge in (one, two)]
  counted, right = [], LocalJudge.score_arrays

  def count(judge, params, tokens, *rest):
    if judge.name != 'student':
      counted.append((judge.name, len(tokens)))
    return right(judge, params, tokens, *rest)

  monkeypatch.setattr(LocalJudge, 'score_arrays', count)
  responses, evidence = judged(runtime, state, problems)
  assert dict(counted) == {'teacher/even': 6, 'teacher/odd': 2}
  got = evidence.scores['teacher']
  odd = np.array([problem.route == 'odd' for problem in responses.problems])
  mask = responses.rollout.mask
  for rows, want in ((~odd, wants[0]), (odd, wants[1])):
    np.testing.assert_allclose(
      np.asarray(got.logp)[rows][mask[rows]], np.asarray(want.logp)[rows][mask[rows]], atol=1e-6
    )
  if got.hidden is not None:  # several heads: states of the others are zero
    head = np.asarray(runtime.judges['teacher'].head(state.weights))
    logits = np.asarray(got.hidden) @ head
    logp = np.take_along_axis(
      np.asarray(jax.nn.log_softmax(logits)), responses.rollout.response[..., None], -1
    )[..., 0]
    np.testing.assert_allclose(logp[mask], np.asarray(got.logp)[mask], atol=1e-5)
    batch, _ = verbs.weigh(runtime, state.weights, evidence)
    assert np.isfinite(verbs.update(runtime, state, batch)[1]['loss'])


def test_a_row_without_a_judge_is_named(tmp_path):
  one, two = two_judges(tmp_path)
  runtime, state = runs.at_work(tmp_path, {'teacher': judges.routed(even=one, odd=two)})
  strange = [Problem(question('1+2='), route='strange', name='row 7')] * 4
  with pytest.raises(ValueError, match=r"row 7 has the route 'strange', the table has"):
    judged(runtime, state, strange)


@pytest.mark.parametrize('same', [True, False], ids=['one model', 'two models'])
def test_a_combined_judge_is_the_signed_sum_of_logits(tmp_path, same):
  shown = lambda scene: question(scene.problem.messages[0]['content'] + '1')
  one, two = two_judges(tmp_path)
  two = dataclasses.replace(one if same else two, context=shown)
  if same:
    one, two = (
      judges.itself(refresh=judges.live()),
      judges.itself(refresh=judges.live(), context=shown),
    )
  parts = ((1.25, one), (-0.5, two))
  runtime, state = runs.at_work(
    tmp_path, {'teacher': judges.combined(parts=parts)}, method=gkd.gkd(student_fraction=1.0)
  )
  responses, evidence = judged(runtime, state)
  got, mask = evidence.scores['teacher'], responses.rollout.mask
  logits = 0.0
  for coefficient, part in parts:
    alone, moving = runs.at_work(tmp_path, {'teacher': part}, method=gkd.gkd(student_fraction=1.0))
    _, other = judged(alone, moving)
    states, head = other.scores['teacher'].hidden, alone.judges['teacher'].head(moving.weights)
    logits += coefficient * (np.asarray(states, np.float64) @ np.asarray(head, np.float64))
  log = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
  want = np.take_along_axis(log, responses.rollout.response[..., None], -1)[..., 0]
  np.testing.assert_allclose(np.asarray(got.logp)[mask], want[mask], atol=2e-5)
  head = np.asarray(runtime.judges['teacher'].head(state.weights))
  assert head.shape[0] == got.hidden.shape[-1] == (32 if same else 64)
  ours = np.asarray(jax.nn.log_softmax(np.asarray(got.hidden) @ head))
  np.testing.assert_allclose(ours[mask], log[mask], atol=2e-5)
  batch, _ = verbs.weigh(runtime, state.weights, evidence)
  assert np.isfinite(verbs.update(runtime, state, batch)[1]['loss'])


def test_a_remembered_judge_tells_the_same_and_is_not_asked_twice(tmp_path, monkeypatch):
  weights = runs.teacher_folder(tmp_path)
  responses, want = teacher_scores(tmp_path, judges.frozen(weights))
  remembered = judges.frozen(weights, cache=str(tmp_path / 'cache'))
  runtime, state = runs.at_work(tmp_path, {'teacher': remembered})
  right, mask = LocalJudge.score_arrays, responses.rollout.mask

  def refuse(judge, *arguments):
    return pytest.fail('asked again') if judge.spec.cache else right(judge, *arguments)

  for _ in range(2):
    got = verbs.score(runtime, state.weights, responses, START).scores['teacher']
    for one, other in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
      np.testing.assert_array_equal(np.asarray(one)[mask], np.asarray(other)[mask])
    monkeypatch.setattr(LocalJudge, 'score_arrays', refuse)
  other = judges.frozen(runs.teacher_folder(tmp_path / 'b', seed=9), cache=str(tmp_path / 'cache'))
  elsewhere, _ = runs.at_work(tmp_path, {'teacher': other})
  assert runtime.judges['teacher'].identity != elsewhere.judges['teacher'].identity


def test_states_of_layers_are_remembered_and_come_home(tmp_path):
  weights, request = runs.teacher_folder(tmp_path), ScoreRequest(hidden=True, layers=(0,))
  away, told = mesh_layout(fsdp=2, tensor=2), []
  for options in ({}, {'layout': away}, *2 * ({'cache': str(tmp_path / 'cache')},)):
    runtime, state = runs.at_work(tmp_path, {'teacher': judges.frozen(weights, **options)})
    responses = verbs.sample(runtime, state.weights, runtime.stream().take(4), START)
    scenes = runtime.scenes(responses, START)
    judge = runtime.judges['teacher']
    scores = judge.score(state.weights, scenes, responses.rollout, None, request)
    assert scores.layers.shape[2] == 1
    mask = responses.rollout.mask
    told.append([np.asarray(x)[mask] for x in (scores.layers, scores.hidden, scores.logp)])
  for other in told[1:]:
    for want, got in zip(told[0], other, strict=True):
      np.testing.assert_allclose(got, want, atol=1e-5)


def test_a_row_beyond_the_judges_position_table_is_refused_or_unknown(tmp_path):
  weights = runs.teacher_folder(tmp_path, max_positions=24)
  assert runs.CONFIG.max_positions > 48
  with pytest.raises(ValueError, match=r'judge teacher: sums .* its position table has 24'):
    teacher_scores(tmp_path, judges.frozen(weights))
  responses, scores = teacher_scores(tmp_path, judges.frozen(weights, too_long='unknown'))
  whole = responses.rollout.lengths + responses.rollout.prompt.length
  np.testing.assert_array_equal(np.asarray(scores.known)[:, 0], whole <= 24)
  assert (whole > 24).any() and np.isfinite(np.asarray(scores.logp)).all()


def test_a_judge_with_another_alphabet_of_the_same_size_is_refused_at_build(tmp_path, monkeypatch):
  strings = list(runs.sums.tokenizer().strings())
  strings[0], strings[1] = strings[1], strings[0]
  monkeypatch.chdir(tmp_path)
  runs.teacher_folder(tmp_path, strings=strings)
  for name in (str(tmp_path / 'teacher'), 'teacher'):  # also without a slash
    with pytest.raises(ValueError, match=r"2 ids stand for other strings \(id 0: '0' against '1'"):
      runs.at_work(tmp_path, {'teacher': judges.frozen(name)})


@pytest.mark.parametrize('rows', [32, 22])
@pytest.mark.parametrize('method', [opd.opd(), gkd.gkd(student_fraction=1.0)], ids=['opd', 'gkd'])
def test_padded_rows_are_no_difference(tmp_path, rows, method):
  """22 tokens in tables of 24 (student) and of 32 or 22 (judge): the judge is compared over the student's entries."""
  weights = runs.teacher_folder(tmp_path, vocab_size=rows)
  runtime, state = runs.at_work(tmp_path, {'teacher': judges.frozen(weights)}, method=method)
  responses, evidence = judged(runtime, state)
  loaded, mask = load.model(weights, mesh_layout()), responses.rollout.mask
  rollout = responses.rollout
  plain = scorer.score(
    loaded.params,
    rollout.prompt.tokens,
    rollout.prompt.length,
    rollout.response,
    config=loaded.config,
    layout=mesh_layout(),
    request=ScoreRequest(hidden=True),
  )
  head = transformer.bind(loaded.config, mesh_layout(), loaded.params).head()
  logits = np.asarray(plain.hidden @ head)[..., :24]
  want = np.take_along_axis(
    np.asarray(jax.nn.log_softmax(jnp.asarray(logits))), rollout.response[..., None], -1
  )[..., 0]
  got = np.asarray(evidence.scores['teacher'].logp)
  np.testing.assert_allclose(got[mask], want[mask], atol=1e-5)
  batch, _ = verbs.weigh(runtime, state.weights, evidence)
  assert np.isfinite(verbs.update(runtime, state, batch)[1]['loss'])


def test_a_dry_step_changes_no_bit(tmp_path):
  judge = judges.itself(refresh=judges.ema(rate=0.5))
  runtime, state = runs.at_work(tmp_path, {'teacher': judge})
  before, said = runs.digest(state), []
  after, _ = preflight.check(runtime, runtime.stream(), state, START, said.append)
  assert runs.digest(after) == before and any('dry step' in text for text in said)


@pytest.mark.parametrize('role', ['teacher', 'student'])
def test_a_preflight_names_the_role_whose_numbers_are_not_finite(tmp_path, role, monkeypatch):
  runtime, state = runs.at_work(tmp_path, {'teacher': judges.frozen(runs.teacher_folder(tmp_path))})
  right = verbs.score

  def poisoned(*arguments):
    evidence = right(*arguments)
    scores = evidence.scores[role]
    return evidence._replace(
      scores={**evidence.scores, role: scores._replace(logp=scores.logp * np.nan)}
    )

  monkeypatch.setattr(verbs, 'score', poisoned)
  with pytest.raises(ValueError, match=f'preflight: the {role} gives nan'):
    preflight.check(runtime, runtime.stream(), state, START, lambda text: None)


def test_demonstrations_that_nobody_learns_from_are_not_looked_at(tmp_path):
  runtime, state = runs.at_work(tmp_path, {'teacher': judges.itself()})
  odd = [Problem(question('1+2='), demonstration=({'role': 'user', 'content': '3'},))] * 4
  assert len(verbs.sample(runtime, state.weights, odd, START).texts) == 8


def test_refusals(tmp_path):
  with pytest.raises(ValueError, match='never changes'):
    judges.spec.Judge(cache='x')
  with pytest.raises(ValueError, match=r'rate must lie in \[0, 1\]'):
    judges.ema(rate=1.5)


def test_a_combined_judge_gives_no_mass_to_entries_that_a_part_lacks(tmp_path):
  """The extra state of a shorter table keeps its sign whatever the coefficient: 22 tokens in tables of 24 and 22."""
  whole = judges.frozen(runs.teacher_folder(tmp_path / 'whole'))
  shorter = judges.frozen(runs.teacher_folder(tmp_path / 'short', vocab_size=22))
  parts = ((1.25, whole), (-0.25, shorter))
  runtime, state = runs.at_work(
    tmp_path, {'teacher': judges.combined(parts=parts)}, method=gkd.gkd(student_fraction=1.0)
  )
  _, evidence = judged(runtime, state)
  head = np.asarray(runtime.judges['teacher'].head(state.weights))
  probs = np.asarray(jax.nn.softmax(np.asarray(evidence.scores['teacher'].hidden) @ head))
  assert probs[..., 22:].max() < 1e-12 and np.allclose(probs.sum(-1), 1, atol=1e-5)
