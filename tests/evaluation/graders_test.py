"""Graders against answers by hand, and against what makes them hang."""

import time

import graded_answers as answers
import pytest

from opd_jax.data.problems import Problem, Task, Verdict, verdict_of
from opd_jax.data.sources import Source
from opd_jax.evaluation.graders.integers import integers
from opd_jax.evaluation.graders.maths import maths
from opd_jax.evaluation.graders.tool_calls import tool_calls
from opd_jax.evaluation.graders.worker import Worker


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


def test_a_worker_that_hangs_or_dies_is_replaced(tmp_path, monkeypatch):
  (tmp_path / 'worker_of_a_test.py').write_text(
    'import os, sys, time\n'
    'print("0", flush=True)\n'
    'for line in sys.stdin:\n'
    '  if "sleep" in line: time.sleep(1000)\n'
    '  if "die" in line: os._exit(3)\n'
    '  print(line, end="", flush=True)\n'
  )
  monkeypatch.setenv('PYTHONPATH', str(tmp_path))
  worker = Worker('worker_of_a_test')
  assert worker.ask(['a'], seconds=30.0) == ['a']
  first = worker.process
  assert worker.ask('sleep', seconds=0.2) is None
  assert worker.ask('b', seconds=30.0) == 'b' and worker.process is not first
  assert worker.ask('die', seconds=30.0) is None
  assert worker.ask('c' * 1_000_000, seconds=30.0) == 'c' * 1_000_000
  worker.stop()


def test_an_outcome_follows_from_the_reward_unless_a_verifier_names_one():
  task = lambda verify: Task(name='t', source=Source(), read=lambda row: None, verify=verify)
  outcome = lambda result: verdict_of(task(lambda problem, text: result), asked('1'), '').outcome
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
