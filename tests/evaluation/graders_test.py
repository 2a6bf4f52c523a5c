"""Graders against answers by hand, and against what makes them hang."""

import threading
import time

import graded_answers as answers
import pytest

from opd_jax import responses
from opd_jax.data.mixture import mixture
from opd_jax.data.problems import Problem, Task, Verdict, is_thread_safe, thread_safe, verdict_of
from opd_jax.data.sources import Source
from opd_jax.evaluation import summary
from opd_jax.evaluation.graders import texts
from opd_jax.evaluation.graders.both import both
from opd_jax.evaluation.graders.integers import integers
from opd_jax.evaluation.graders.maths import maths
from opd_jax.evaluation.graders.tool_calls import tool_calls
from opd_jax.evaluation.graders.worker import Pool, Worker


def asked(gold: str) -> Problem:
  return Problem((), answer=gold, name='a problem')


def test_there_are_two_hundred_pairs():
  pairs = sum(len(same) + len(other) for same, other in answers.MATHS.values())
  assert pairs + len(answers.INTEGERS) + len(answers.TRAPS) >= 200


@pytest.mark.parametrize('gold', answers.MATHS)
def test_maths_takes_every_spelling_and_nothing_else(gold):
  pytest.importorskip('math_verify')
  graded = lambda text: maths(asked(gold), f'So the answer is $\\boxed{{{text}}}$.').outcome
  same, other = answers.MATHS[gold]
  assert {text: graded(text) for text in same} == dict.fromkeys(same, 'correct')
  assert {text: graded(text) for text in other} == dict.fromkeys(other, 'wrong')


@pytest.mark.parametrize('gold, text', answers.TRAPS)
def test_traps_of_math_verify_are_known(gold, text):
  pytest.importorskip('math_verify')
  graded = maths(asked(gold), f'So the answer is $\\boxed{{{text}}}$.')
  assert graded.outcome == answers.TRAPS[gold, text]


@pytest.mark.parametrize('gold, text, outcome', answers.INTEGERS, ids=range(len(answers.INTEGERS)))
def test_integers(gold, text, outcome):
  begin = time.process_time()
  verdict = integers(asked(gold), text)
  assert (verdict.outcome, verdict.reward) == (outcome, float(outcome == 'correct'))
  assert time.process_time() - begin < 5  # a quadratic search takes half a minute


def test_an_answer_that_is_no_number_names_its_problem():
  with pytest.raises(ValueError, match=r"a problem, '1/2', is no whole number"):
    integers(asked('1/2'), '1')


def test_maths_does_not_hang(monkeypatch):
  pytest.importorskip('math_verify')
  monkeypatch.setattr('opd_jax.evaluation.graders.maths.SECONDS', 1.0)
  assert maths(asked('1'), r'\boxed{9^{9^{9^{9}}}}').outcome in ('timed out', 'wrong')
  assert maths(asked('1'), 'x' * 1_000_000).outcome == 'unparsed'
  deep = r'\boxed{' + '(' * 5000 + '2' + ')' * 5000 + '}'
  assert maths(asked('1'), deep).outcome in ('timed out', 'unparsed', 'wrong')
  monkeypatch.undo()
  assert maths(asked('1'), r'\boxed{1}').outcome == 'correct'


@pytest.fixture
def stub(tmp_path, monkeypatch):
  """A module of a worker that sleeps or dies where it is told to."""
  (tmp_path / 'worker_of_a_test.py').write_text(
    'import os, sys, time\n'
    'print("0", flush=True)\n'
    'for line in sys.stdin:\n'
    '  if "sleep" in line: time.sleep(1000)\n'
    '  if "die" in line: os._exit(3)\n'
    '  print(line, end="", flush=True)\n'
  )
  monkeypatch.setenv('PYTHONPATH', str(tmp_path))
  return 'worker_of_a_test'


def test_a_worker_that_hangs_or_dies_is_replaced(stub):
  worker = Worker(stub)
  assert worker.ask(['a'], seconds=30.0) == ['a']
  first = worker.process
  assert worker.ask('sleep', seconds=0.2) is None
  assert worker.ask('b', seconds=30.0) == 'b' and worker.process is not first
  assert worker.ask('die', seconds=30.0) is None
  assert worker.ask('c' * 1_000_000, seconds=30.0) == 'c' * 1_000_000
  worker.stop()


def a_task(verify) -> Task:
  return Task(name='t', source=Source(), read=lambda row: None, verify=verify)


def test_hanging_answers_do_not_add_up(stub):
  """Six of half a second each by four workers: two rounds, not six; the others' verdicts stay in their places."""
  pool = Pool(stub, 4)

  @thread_safe
  def verify(problem, text):
    reply = pool.ask(text, seconds=0.5)
    return Verdict(float(reply == problem.answer), outcome='' if reply else 'timed out')

  texts = ['sleep', 'a', 'sleep', 'sleep', 'b', 'sleep', 'sleep', 'sleep']
  problems = [asked(text if text == 'a' else 'other') for text in texts]
  begin = time.monotonic()
  verdicts = responses.verdicts_of(a_task(verify), problems, texts)
  assert time.monotonic() - begin < 2.5
  wanted = {'sleep': 'timed out', 'a': 'correct', 'b': 'wrong'}
  assert [verdict.outcome for verdict in verdicts] == [wanted[text] for text in texts]


def test_a_worker_that_nobody_needs_is_never_made(stub):
  pool = Pool(stub, 4)
  for text in 'abc':
    assert pool.ask(text, seconds=30.0) == text
  assert sum(worker.process is not None for worker in pool.free.queue) == 1


def test_only_verifiers_that_are_marked_are_called_by_threads():
  threads = set()

  def verify(problem, text):
    threads.add(threading.current_thread())
    return 1.0

  task = a_task(verify)
  assert responses.verdicts_of(task, 3 * [asked('')], 3 * ['']) == 3 * [Verdict(1.0, '', 'correct')]
  assert threads == {threading.main_thread()}
  marked = both(first=integers, second=maths)
  assert all(map(is_thread_safe, (integers, maths, tool_calls, marked)))
  assert is_thread_safe(mixture({'a': a_task(integers), 'b': a_task(marked)}).verify)
  assert not is_thread_safe(both(first=integers, second=verify))
  assert not is_thread_safe(mixture({'a': task, 'b': a_task(integers)}).verify)
  with pytest.raises(ValueError, match='is no whole number'):
    responses.verdicts_of(a_task(integers), 9 * [asked('x')], 9 * ['1'])


@pytest.mark.parametrize(
  'text, outcome, second, disagrees',
  [
    (r'\boxed{42}', 'correct', 'correct', False),
    (r'\boxed{\frac{84}{2}}', 'unparsed', 'correct', True),
    (r'\boxed{6 \cdot 7}', 'unparsed', 'correct', True),
    (r'\boxed{41}', 'wrong', 'wrong', False),
    (r'\boxed{\frac{41}{1}}', 'unparsed', 'wrong', False),
    (r'\boxed{42.}', 'correct', 'wrong', True),
    ('no idea', 'unparsed', 'unparsed', False),
  ],
)
def test_two_graders_and_where_they_differ(text, outcome, second, disagrees):
  """The first decides; not to parse an answer and to call it wrong is no disagreement."""
  pytest.importorskip('math_verify')
  verdict = verdict_of(a_task(both(first=integers, second=maths)), asked('42'), text)
  assert (verdict.outcome, verdict.second) == (outcome, second)
  assert verdict.reward == float(outcome == 'correct')
  assert summary.disagreed(verdict._asdict()) == disagrees
  swapped = both(first=maths, second=integers)(asked('42'), text)
  assert (swapped.outcome, swapped.second) == (second, outcome)


def test_a_second_grader_is_checked_like_the_first():
  late = lambda problem, text: Verdict(0.0, outcome='timed out')
  verdict = both(first=integers, second=late)(asked('1'), '1')
  assert verdict.second == 'timed out' and not summary.disagreed(verdict._asdict())
  odd = both(first=integers, second=lambda problem, text: Verdict(1.0, outcome='good'))
  with pytest.raises(ValueError, match=r"both, second: .* the outcome 'good'"):
    odd(asked('1'), '1')


def test_an_outcome_follows_from_the_reward_unless_a_verifier_names_one():
  outcome = lambda result: verdict_of(a_task(lambda problem, text: result), asked('1'), '').outcome
  assert [outcome(x) for x in (1.0, 0.0, float('nan'))] == ['correct', 'wrong', '']
  assert outcome(Verdict(0.0, outcome='unparsed')) == 'unparsed'
  with pytest.raises(ValueError, match=r"the outcome 'good'; it is one of correct"):
    outcome(Verdict(1.0, outcome='good'))


CALL = 'Thought: x\nAction: {}\nAction Input: {}'


@pytest.mark.parametrize(
  'text, outcome',
  [
    (CALL.format('find', '{"n": 5, "open": true}'), 'correct'),
    (CALL.format('find', '{"open": "true", "n": "5.0"}'), 'correct'),
    ('<think>Action: other\n</think>' + CALL.format('find', '{"n": 5, "open": true}'), 'correct'),
    (CALL.format('other', '{"n": 5, "open": true}'), 'wrong'),
    (CALL.format('find', '{"n": 6, "open": true}'), 'wrong'),
    (CALL.format('find', '{"n": 5}'), 'wrong'),
    (CALL.format('find', '{"n": 5, "open": true, "more": null}'), 'wrong'),
    (CALL.format('find', '{"n": 5, "open": '), 'unparsed'),
    (CALL.format('find', '{"n": ' + '[' * 100_000), 'unparsed'),
    (CALL.format('find', '{"n": ' + '[' * 900 + ']' * 900 + '}'), 'unparsed'),
    ('<think>' + CALL.format('find', '{"n": 5, "open": true}'), 'unparsed'),
    (
      CALL.format('find', '{"n": 5.00000000000000000001, "open": true}').replace(
        '5.00000000000000000001', '"5.00000000000000000001"'
      ),
      'wrong',
    ),
    (CALL.format('find', '{"n": "05", "open": true}'), 'wrong'),
    ('find(5)', 'unparsed'),
    ('', 'unparsed'),
  ],
  ids=range(15),
)
def test_calls_of_tools(text, outcome):
  gold = '[{"Action": "find", "Action_Input": "{\\"n\\": 5, \\"open\\": true}"}]'
  assert tool_calls(asked(gold), text).outcome == outcome


def test_nested_arguments_can_match():
  gold = '[{"Action": "a-b", "Action_Input": "{\\"x\\": {\\"y\\": [1, 2]}}"}]'
  assert tool_calls(asked(gold), CALL.format('a-b', '{"x": {"y": ["1", 2]}}')).outcome == 'correct'


def test_a_golden_call_that_no_json_can_match_is_not_the_responses_fault():
  gold = '[{"Action": "find", "Action_Input": "{\\"n\\": ${n from list}}"}]'
  assert tool_calls(asked(gold), CALL.format('find', '{"n": 5}')).outcome == 'wrong'


@pytest.mark.parametrize('verify, text', [(texts.exact, ''), (texts.code_block, '```\n```')])
def test_a_problem_without_an_answer_does_not_reward_silence(verify, text):
  with pytest.raises(ValueError, match='line 3 has no answer, so silence would be rewarded'):
    verify(Problem((), name='line 3', answer=' '), text)
