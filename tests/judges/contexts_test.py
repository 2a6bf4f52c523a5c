"""Contexts: what they show and in which order, what is missing, and answers that may not be shown."""

import dataclasses
import json

import numpy as np
import pytest
import tiny_runs as runs

from opd_jax import judges
from opd_jax.data.problems import Problem, Task, from_columns, question
from opd_jax.data.sources import json_lines
from opd_jax.data.tiny_worlds import calls, sums
from opd_jax.data.tiny_worlds.sums import verify_sum
from opd_jax.judges import contexts, scenes
from opd_jax.judges.contexts import Wording
from opd_jax.methods import kdrl, seqkd
from opd_jax.ramps import Ramp, Stepped
from opd_jax.training import verbs
from opd_jax.training.alarms import Alarm, Bounds, check_alarms
from opd_jax.training.state import RunPosition

START = RunPosition()
WORDS = Wording(success=' s:', another=' a:', failure=' f:', feedback=' b:', closing=' .')
PROBLEM = Problem(
  question('1+2+3='),
  answer='6',
  demonstration='1+2=3;3+3=6:6',
  name='file, line 4',
  extra={'hint': '1+2=3', 'cue': '', 'document': '1+2+3', 'passage': '3+3', 'leak': 'it is 6.'},
)


def group(texts, rewards, feedback=None):
  """The scenes of some responses to one question."""
  count = len(texts)
  return scenes.scenes(
    [PROBLEM] * count,
    texts,
    rewards,
    feedback or [''] * count,
    groups=[0] * count,
    rows=range(count),
    seed=0,
    step=0,
  )


ONE = group(['x'], [0.0])[0]
text_of = lambda context, scene=ONE: context(scene)[-1]['content']


def test_a_column_stands_behind_the_question_or_in_place_of_a_part_of_it():
  assert text_of(contexts.column(name='hint', introduction=' ', closing='!')) == '1+2+3= 1+2=3!'
  short = contexts.column(name='passage', introduction='', instead_of='document')
  assert text_of(short) == '3+3='
  assert contexts.column(name='cue')(ONE) is None
  assert contexts.columns_of(contexts.guarded(context=short)) == ('passage', 'document')


def test_siblings_are_shown_in_the_published_order_and_the_row_itself_never():
  rows = group(['r0', 'r1', 'w2', 'r3', 'w4'], [1.0, 1.0, 0.0, 1.0, 0.0], list('abcde'))
  two = contexts.siblings(successes=2, failures=1, feedback='always', wording=WORDS)
  shown = text_of(two, rows[2])
  assert shown.startswith('1+2+3= s:r') and shown.endswith(' f:w4 b:c .') and ' a:r' in shown
  assert 'r0' not in text_of(two, rows[0]) and ' b:' not in text_of(two, rows[0])
  assert text_of(two, rows[2]) == shown  # drawn with the row's own seed
  one = contexts.siblings(wording=WORDS)
  assert {text_of(one, row)[-5:] for row in rows} <= {f'{n}'.join([':r', ' .']) for n in (0, 1, 3)}


def test_siblings_without_success_have_feedback_or_nothing():
  rows = group(['w0', 'w1', 'u2'], [0.0, 0.0, np.nan], ['no', '', 'odd'])
  scalar, rich = (
    contexts.siblings(feedback=when, wording=WORDS) for when in ('never', 'without success')
  )
  assert [scalar(row) for row in rows] == [None] * 3
  assert text_of(rich, rows[0]) == '1+2+3= b:no .' and rich(rows[1]) is None is rich(rows[2])
  failed = contexts.siblings(successes=0, failures=1, wording=WORDS)
  assert text_of(failed, rows[0]) == '1+2+3= f:w1 .'  # an unverified response is no failure


def test_what_was_thought_is_left_out():
  rows = group(['w', '<think>why</think>\nr'], [0.0, 1.0])
  assert text_of(contexts.siblings(wording=WORDS), rows[0]) == '1+2+3= s:r .'
  kept = contexts.siblings(wording=WORDS, strip_thinking=False)
  assert 'why' in text_of(kept, rows[0])


def test_settings_that_show_nothing_are_refused():
  with pytest.raises(ValueError, match='siblings: nothing is to be shown'):
    contexts.siblings(successes=0)
  with pytest.raises(ValueError, match="feedback is 'never', 'without success' or 'always'"):
    contexts.siblings(feedback='yes')
  with pytest.raises(ValueError, match="where_shown is 'refuse' or 'unknown'"):
    contexts.guarded(context=contexts.solution(), where_shown='blank')


@pytest.mark.parametrize(
  'shows', [contexts.column(name='leak'), contexts.solution()], ids=['answer', 'demonstration']
)
def test_a_context_that_shows_the_answer_is_refused_by_name_or_shows_nothing(shows):
  held = contexts.guarded(context=shows)
  with pytest.raises(
    ValueError, match=r'judge tutor: .* fails at file, line 4: .*shows the answer'
  ):
    scenes.shown(held, ONE, judge='tutor')
  assert contexts.guarded(context=shows, where_shown='unknown')(ONE) is None


def test_the_guard_lets_a_hint_through_and_counts_what_the_question_says_itself():
  hint = contexts.guarded(context=contexts.column(name='hint'))
  assert hint(ONE) is not None
  asked = ONE._replace(problem=PROBLEM._replace(answer='3'))  # a term of the question, too
  assert contexts.guarded(context=lambda scene: scene.problem.messages)(asked) is not None
  with pytest.raises(ValueError, match="shows the answer, '3'"):
    hint(asked)
  longer = ONE._replace(problem=PROBLEM._replace(answer='2'))
  number = contexts.guarded(context=lambda scene: question('1+2+3= 12 2.5'))
  assert number(longer) is not None


def test_a_context_that_raises_is_named_with_its_row(tmp_path):
  def broken(scene):
    return scene.mates[9]

  runtime, state = runs.at_work(tmp_path, {'teacher': judges.itself(context=broken)})
  responses = verbs.sample(runtime, state.weights, runtime.stream().take(4), START)
  words = r'judge teacher: its context .*broken fails at sums \(train\), problem \d+: IndexError'
  with pytest.raises(ValueError, match=words):
    verbs.score(runtime, state.weights, responses, START)


def hinted(folder, rows) -> Task:
  file = folder / 'hints.jsonl'
  file.write_text(''.join(json.dumps(row) + '\n' for row in rows))
  read = from_columns(answer='answer')
  more = lambda raw: read(raw)._replace(extra={k: raw[k] for k in ('hint',) if k in raw})
  return Task(name='hinted', source=json_lines(str(file)), read=more, verify=verify_sum)


@pytest.mark.parametrize('is_a_part', [False, True])
def test_a_row_without_the_column_is_named_with_its_file_before_step_0(tmp_path, is_a_part):
  good = {'problem': '1+1=', 'answer': '2', 'hint': '1'}
  bad = {'problem': '1+2=', 'answer': '3'}
  task = hinted(tmp_path, [good, bad, good])
  judge = judges.itself(context=contexts.column(name='hint', introduction=':'))
  if is_a_part:  # of a judge whose first part has the same weights and shows nothing of the data
    judge = judges.combined(parts=((0.5, judges.itself()), (0.5, judge)))
  distil = {'task': task, 'judges': {'teacher': judge}}
  with pytest.raises(
    ValueError, match=r'hints\.jsonl, line 2: it has no column hint, which the con'
  ):
    runs.run(runs.experiment(tmp_path, distil=distil), tmp_path / 'run')
  skipped = dataclasses.replace(task, on_bad_row='skip')
  runtime, _ = runs.at_work(tmp_path, {'teacher': judge}, task=skipped)
  assert {problem.messages[0]['content'] for problem in runtime.stream().take(6)} == {'1+1='}


def test_a_judge_that_is_shown_nothing_of_any_row_is_refused_before_step_0(tmp_path):
  judge = judges.itself(context=contexts.column(name='hint', introduction=':'))
  task = hinted(tmp_path, [{'problem': '1+1=', 'answer': '2', 'hint': ''}])
  distil = {'task': task, 'judges': {'teacher': judge}}
  known = runs.experiment(tmp_path, distil=distil)
  known = dataclasses.replace(known, stages=known.stages[1:], evaluations=())
  with pytest.raises(ValueError, match='shows nothing of any of the 1 rows'):
    runs.run(known, tmp_path / 'run', skip_preflight=False)


def test_an_alarm_rings_where_nothing_was_judged_for_many_batches():
  row, memory = {'step': 1, 'loss': 0.0, 'grad_norm': 0.0}, {}
  for judged in [0.0] * 19 + [0.5] + [0.0] * 19:
    memory = check_alarms({**row, 'judged': judged}, memory, Bounds())
  with pytest.raises(Alarm, match='no token of the last 20 batches was judged'):
    check_alarms({**row, 'judged': 0.0}, memory, Bounds())
  check_alarms({**row, 'judged': 0.0}, memory, Bounds(unjudged=None))


def test_a_group_without_successes_is_unknown_and_its_rewards_live_on(tmp_path):
  task = dataclasses.replace(runs.sums.sums(**runs.WORLD), verify=lambda problem, text: 0.0)
  judge = judges.itself(context=contexts.siblings(wording=WORDS))
  changes = {'task': task, 'method': kdrl.kdrl()}
  runtime, state = runs.at_work(tmp_path, {'teacher': judge}, **changes)
  responses = verbs.sample(runtime, state.weights, runtime.stream().take(4), START)
  evidence = verbs.score(runtime, state.weights, responses, START)
  assert not evidence.mask.any() and np.asarray(evidence.rollout.mask).any(axis=1).all()
  outcome, distilled = verbs.weigh(runtime, state.weights, evidence)[0].terms
  assert np.asarray(outcome.coefficient).any() and not np.asarray(distilled.coefficient).any()


def test_a_teacher_that_sees_the_solution_writes_in_front_of_it(tmp_path):
  judge = judges.itself(context=contexts.solution(introduction=':'))
  runtime, state = runs.at_work(tmp_path, {'teacher': judge}, method=seqkd.seqkd())
  problems = runtime.stream().take(4)
  seen = []
  local, right = runtime.judges['teacher'], type(runtime.judges['teacher']).prompts
  monkey = lambda judge, those: seen.extend(right(judge, those)) or seen[-len(those) :]
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(type(local), 'prompts', monkey)
    verbs.sample(runtime, state.weights, problems, START)
  texts = [runtime.tokenizer.decode(prompt) for prompt in seen]
  assert texts == [
    f'{problem.messages[0]["content"]}:{problem.demonstration}'
    for problem in problems
    for _ in range(2)
  ]


def test_a_task_asks_as_a_judge_reads():
  task = contexts.with_context(
    task=sums.sums(), context=contexts.column(name='hint', introduction=':')
  )
  raw = sums.sums().source[0]
  assert task.read(raw).messages[0]['content'] == f'{raw["problem"]}:{raw["hint"]}'
  assert task.read({**raw, 'hint': ''}) is None


def test_tiny_worlds_give_hints_without_answers_short_passages_and_feedback():
  far = sums.sums(distractors=2)
  held = contexts.guarded(context=contexts.column(name='hint', introduction=':'))
  short = contexts.column(name='passage', introduction='', instead_of='document')
  for number in range(50):
    problem = far.read(far.source[number])
    scene = ONE._replace(problem=problem)
    assert held(scene) is not None
    chain = problem.messages[0]['content'].split(';')
    assert len(chain) == 3 and short(scene)[0]['content'] == chain[-1]
    wrong = verify_sum(problem, ':0')
    assert wrong.reward == 0.0 and wrong.feedback in problem.demonstration
    assert verify_sum(problem, problem.demonstration).feedback == ''
  offered = calls.calls(offered=4)
  problem = offered.read(offered.source[3])
  assert problem.extra['document'].count('(') == 4 and problem.extra['passage'].count('(') == 1
  verdict = calls.verify_calls(problem, 'Action: none')
  assert verdict.feedback.startswith('expected the function')


def test_what_a_context_shows_may_fade():
  """From its end; where nothing is left the judge reads what the student reads."""
  seen = lambda context, step: text_of(context, ONE._replace(step=step))
  fading = Ramp(begin=1.0, end=0.0, steps=4)
  solved = contexts.solution(introduction=':', closing='!', part=fading)
  assert [seen(solved, step) for step in range(5)] == [
    '1+2+3=:1+2=3;3+3=6:6!', '1+2+3=:1+2=3;3+3=!', '1+2+3=:1+2=3;!', '1+2+3=:1+2!', '1+2+3=',
  ]  # fmt: skip
  assert seen(contexts.column(name='hint', introduction=':', part=0.6), 0) == '1+2+3=:1+2'
  with pytest.raises(ValueError, match=r'solution: part must lie in \[0, 1\]'):
    contexts.solution(part=1.5)


def test_a_context_may_be_shown_in_some_rows():
  watching = Stepped(name='rows', begin=1.0, end=0.0, by=0.25, metric='reward', above=0.5)
  some = contexts.in_some_rows(context=contexts.column(name='hint'), fraction=watching)
  rows = [ONE._replace(seed=(3, row)) for row in range(400)]
  shown = lambda value: [
    len(text_of(some, row._replace(decisions={'rows': value}))) > len('1+2+3=') for row in rows
  ]
  few, more = shown(0.25), shown(0.5)
  assert 70 < sum(few) < 130 < sum(more) and all(b for a, b in zip(few, more, strict=True) if a)
  assert shown(1.0) == [True] * 400 and shown(0.0) == [False] * 400
  guarded = contexts.guarded(context=some)
  assert scenes.columns_of(guarded) == ('hint',) and scenes.numbers_of(guarded) == (watching,)
