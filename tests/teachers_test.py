"""Judges: other prompts, several of them, and remembered ones tell what a plain one would, at the right positions."""

import jax
import numpy as np
import pytest
import tiny_runs as runs

from opd_jax import teachers
from opd_jax.data.problems import Problem, question
from opd_jax.inference import scorer
from opd_jax.methods import opd
from opd_jax.training import evaluate, preflight
from opd_jax.training.bench import Bench, begin
from opd_jax.training.checkpoints import RunPosition


def bench_of(folder, judges, **changes):
  stage = runs.dataclasses.replace(
    runs.experiment(folder).stages[1], method=opd.opd(), judges=judges, **changes
  )
  bench = Bench(runs.experiment(folder, stages=(stage,)), stage)
  params = runs.transformer.init(runs.CONFIG, runs.mesh_layout(), jax.random.key(0))
  bench.look_at(begin(bench.experiment, stage, params))
  return bench


def judged(bench):
  written = bench.sample(RunPosition(), bench.stream.take(4))
  return written, bench.score(RunPosition(), written)


def test_a_privileged_judge_is_shown_more_and_tells_about_the_same_tokens(tmp_path):
  weights = runs.teacher_folder(tmp_path)

  def with_answer(problem, texts, rewards, place):
    assert len(texts) == len(rewards) == 2 and place in (0, 1)
    return question(problem.messages[0]['content'] + problem.answer)

  bench = bench_of(tmp_path, {'teacher': teachers.frozen(weights, context=with_answer)})
  written, evidence = judged(bench)
  seat = bench.seats['teacher'][0][1]
  for row, problem in enumerate(written.problems):
    prompt = seat.template.render(bench.tokenizer, with_answer(problem, 'xx', 'xx', 0))
    mask = written.rollout.mask[row]
    response = written.rollout.response[row][mask].tolist()
    (want,) = scorer.score_rows(
      seat.params(), [prompt], [response], config=seat.config, layout=seat.layout
    )
    np.testing.assert_allclose(np.asarray(evidence.teacher.logp)[row][mask], want.logp, atol=1e-5)


def test_rows_without_a_judgement_do_not_count(tmp_path):
  only_wrong = lambda problem, texts, rewards, place: None if place == 0 else problem.messages
  bench = bench_of(tmp_path, {'teacher': teachers.itself(context=only_wrong)})
  written, evidence = judged(bench)
  counted = evidence.rollout.mask.any(axis=1)
  assert counted.tolist() == [False, True] * 4 and written.rollout.mask.any(axis=1).all()
  batch, _ = bench.weigh(evidence)
  assert not np.asarray(batch.weighted_terms[0].coefficient)[~counted].any()


def test_each_row_goes_to_the_judge_of_its_route(tmp_path):
  one, two = (
    teachers.frozen(runs.teacher_folder(tmp_path / str(seed), seed=seed)) for seed in (5, 6)
  )
  bench = bench_of(tmp_path, {'teacher': teachers.routed(even=one, odd=two)})
  alone = [bench_of(tmp_path, {'teacher': judge}) for judge in (one, two)]
  plain = bench.stream.take(4)
  problems = [
    problem._replace(route=('even', 'odd')[number % 2]) for number, problem in enumerate(plain)
  ]
  written = bench.sample(RunPosition(), problems)
  got = np.asarray(bench.score(RunPosition(), written).teacher.logp)
  want = [np.asarray(each.score(RunPosition(), written).teacher.logp) for each in alone]
  for row, problem in enumerate(written.problems):
    np.testing.assert_allclose(got[row], want[problem.route == 'odd'][row], atol=1e-6)
  with pytest.raises(ValueError, match=r"has the route 'strange', the table has \['even', 'odd'\]"):
    strange = [Problem(question('1+2='), demonstration='', route='strange', name='row 7')] * 4
    bench.score(RunPosition(), bench.sample(RunPosition(), strange))


def test_a_remembered_judge_tells_the_same_and_is_not_asked_twice(tmp_path, monkeypatch):
  weights = runs.teacher_folder(tmp_path)
  live = bench_of(tmp_path, {'teacher': teachers.frozen(weights)})
  cached = bench_of(tmp_path, {'teacher': teachers.frozen(weights, cache=str(tmp_path / 'cache'))})
  written, want = judged(live)
  ask = lambda: cached.score(RunPosition(), written).teacher
  right = teachers.Seat._scored

  def refuse(seat, *arguments):
    return pytest.fail('asked again') if seat.judge.cache else right(seat, *arguments)

  for _ in range(2):
    got = ask()
    mask = written.rollout.mask  # what lies behind a response is not kept
    for one, other in zip(jax.tree.leaves(got), jax.tree.leaves(want.teacher), strict=True):
      np.testing.assert_array_equal(np.asarray(one)[mask], np.asarray(other)[mask])
    monkeypatch.setattr(teachers.Seat, '_scored', refuse)
  seat = cached.seats['teacher'][0][1]
  other = bench_of(
    tmp_path, {'teacher': teachers.frozen(runs.teacher_folder(tmp_path / 'b', seed=9))}
  )
  assert seat.identity != other.seats['teacher'][0][1].identity


def test_states_of_layers_are_remembered_and_come_home(tmp_path):
  weights, needs = runs.teacher_folder(tmp_path), scorer.Needs(hidden=True, layers=(0,))
  away = runs.mesh_layout(fsdp=2, tensor=2)
  told = []
  for options in (
    {},
    {'layout': away},
    {'cache': str(tmp_path / 'cache')},
    {'cache': str(tmp_path / 'cache')},
  ):
    bench = bench_of(tmp_path, {'teacher': teachers.frozen(weights, **options)})
    written = bench.sample(RunPosition(), bench.stream.take(4))
    scores, _ = bench.judged('teacher', written, needs=needs)
    assert scores.layers.shape[2] == 1
    told.append(
      [np.asarray(x)[written.rollout.mask] for x in (scores.layers, scores.hidden, scores.logp)]
    )
  for other in told[1:]:
    for want, got in zip(told[0], other, strict=True):
      np.testing.assert_allclose(got, want, atol=1e-5)


def test_an_evaluation_may_be_judged_elsewhere_and_needs_no_routes(tmp_path):
  weights = runs.teacher_folder(tmp_path)
  evaluation = runs.Evaluation(task=runs.sums.sums(split='heldout'), problems=6)
  problems, told = evaluate.problems_of(evaluation), {}
  many = runs.mesh_layout(fsdp=4)
  stage = runs.dataclasses.replace(runs.experiment(tmp_path).stages[1], method=opd.opd())
  alone = teachers.frozen(weights, layout=runs.mesh_layout())
  for name, teacher in (('elsewhere', alone), ('by route', teachers.routed(a=alone, b=alone))):
    known = runs.experiment(
      tmp_path, stages=(runs.dataclasses.replace(stage, judges={'teacher': teacher}),)
    )
    bench = Bench(runs.dataclasses.replace(known, layout=many), known.stages[0])
    params = runs.transformer.init(runs.CONFIG, many, jax.random.key(0))
    bench.look_at(begin(bench.experiment, bench.stage, params))
    told[name], _ = evaluate.evaluate(bench, evaluation, problems)
  assert told['elsewhere']['eval/reverse_kl'] > 0 and 'eval/reverse_kl' not in told['by route']


def test_a_dry_step_changes_no_bit(tmp_path):
  bench = bench_of(tmp_path, {'teacher': teachers.itself(refresh=teachers.ema(rate=0.5))})
  state = begin(
    bench.experiment,
    bench.stage,
    runs.transformer.init(runs.CONFIG, bench.layout, jax.random.key(0)),
  )
  before, said = runs.digest(state), []
  after = preflight.check(bench, state, RunPosition(), said.append)
  assert runs.digest(after) == before and any('dry step' in text for text in said)


def test_traces_that_nobody_learns_from_are_not_looked_at(tmp_path):
  bench = bench_of(tmp_path, {'teacher': teachers.itself()})
  odd = [
    Problem(question('1+2='), demonstration=({'role': 'user', 'content': '3'},), name='row 1')
  ] * 4
  assert len(bench.sample(RunPosition(), odd).texts) == 8


def test_refusals(tmp_path):
  with pytest.raises(ValueError, match='never changes'):
    teachers.Judge(cache='x')
  with pytest.raises(ValueError, match=r'rate must lie in \[0, 1\]'):
    teachers.ema(rate=1.5)
  judges = {'teacher': teachers.routed(a=teachers.itself(), b=teachers.itself())}
  bench = bench_of(tmp_path, judges, whole_diagnosis=True)
  with pytest.raises(ValueError, match='cannot hand out hidden states'):
    problems = [problem._replace(route='a') for problem in bench.stream.take(4)]
    bench.score(RunPosition(), bench.sample(RunPosition(), problems))
