"""Rules that end a stage: when they do, what is saved, and what is refused."""

import dataclasses

import pytest
import tiny_runs as runs

from opd_jax.training import inspection, loop, stopping
from opd_jax.training.stopping import StopWhen

SHORT = StopWhen(metric='length', below=0.5, readings=2)  # never: a response has a token
LONG = StopWhen(metric='length', above=0.5, readings=2)  # always


def ended(rule, readings):
  """The number of the reading at which the stage ends; 0 where it does not."""
  memory = {}
  for number, value in enumerate(readings, 1):
    memory = stopping.after_row((rule,), memory, {'loss': 0.0, rule.metric: value})
    if stopping.met((rule,), memory):
      return number
  return 0


def test_it_ends_after_so_many_readings_in_a_row():
  rule = StopWhen(metric='entropy', below=0.1, readings=3)
  assert ended(rule, [0.05, 0.05, 0.2, 0.05, 0.05, 0.05]) == 6
  assert ended(rule, [0.1, 0.1, 0.1, 0.1]) == 0  # on the bound is not below it
  assert ended(dataclasses.replace(rule, after=2), [0.0] * 9) == 5
  assert ended(StopWhen(metric='length', above=9, readings=1), [9.0, 9.5]) == 2


def test_what_is_not_measured_is_no_reading():
  rule = StopWhen(metric='eval/sums/avg@1', below=0.5, readings=1)
  row = {'loss': 0.0, 'entropy': 1.0}
  assert stopping.after_row((rule,), None, row) == {}
  assert stopping.after_row((LONG,), None, {'loss': 0.0, 'length': float('nan')}) == {}
  with pytest.raises(
    ValueError, match=r'StopWhen length above 0\.5 looks at length, and this step'
  ):
    stopping.after_row((LONG,), None, row)


def test_the_message_says_what_usually_helps():
  for metric, side, word in (
    ('entropy', 'below', 'repeats itself'),
    ('length', 'above', 'until they are cut'),
    ('eval/sums/avg@4', 'below', 'warm-up with SFT'),
  ):
    rule = StopWhen(metric=metric, readings=1, **{side: 1.0})
    value = 0.0 if side == 'below' else 2.0
    text = stopping.explained(rule, {rule.name: {'last': value}}, stage='distil', step=7)
    assert f'stage distil ended at step 7: {metric} was {side} 1 in 1 readings' in text
    assert word in text
  odd = StopWhen(metric='grad_norm', above=1.0, readings=1)
  assert stopping.explained(odd, {odd.name: {'last': 2.0}}, stage='a', step=1).endswith('last 2')


def test_a_stage_that_is_ended_leaves_the_next_what_it_has(tmp_path):
  """The first stage ends after two of its three steps; cut off there, the run ends with the same bits."""
  warm = dataclasses.replace(runs.experiment(tmp_path).stages[0], rows=8)
  first = dataclasses.replace(warm, stops=(dataclasses.replace(LONG, ends='stage'),))
  second = dataclasses.replace(warm, name='second', steps=1)
  known = dataclasses.replace(runs.experiment(tmp_path), stages=(first, second))
  whole = runs.run(known, tmp_path / 'whole')
  assert whole.finished and whole.position.step == 3

  def pull(done, total, text):
    if done == 2:
      raise KeyboardInterrupt

  listener = loop.Listener(say=lambda text: None, progress=pull)
  with pytest.raises(KeyboardInterrupt):
    runs.run(known, tmp_path / 'cut', listener=listener)
  assert runs.digest_of(runs.run(known, tmp_path / 'cut')) == runs.digest_of(whole)
  rows = runs.metrics_of(tmp_path / 'whole')
  assert runs.metrics_of(tmp_path / 'cut') == rows
  assert [(row['step'], row['stage']) for row in rows if 'loss' in row] == [
    (1, 'warm'), (2, 'warm'), (3, 'second'),
  ]  # fmt: skip


def test_a_run_that_is_stopped_is_saved_and_stays_stopped(tmp_path):
  known = runs.experiment(tmp_path)
  warm = dataclasses.replace(known.stages[0], stops=(SHORT, LONG))
  known = dataclasses.replace(known, stages=(warm, known.stages[1]))
  said, saved = [], []
  listener = loop.Listener(say=said.append)
  first, again = (
    runs.run(known, tmp_path / 'run', listener=listener, finish=saved.append) for _ in range(2)
  )
  assert not first.finished and first.position.step == 2 and len(saved) == 2
  assert 'stage warm ended at step 2: length was above 0.5' in first.stopped
  assert said.count(first.stopped) == 2 and again.stopped == first.stopped
  assert runs.digest_of(again) == runs.digest_of(first)
  rows = runs.metrics_of(tmp_path / 'run')
  assert rows[-1]['step'] == 2 and 'eval/sums/length' in rows[-1]  # evaluated where it stopped


def test_refusals(tmp_path):
  for changes, words in (
    ({'below': 1.0}, 'give one of above and below'),
    ({'above': None}, 'give one of above and below'),
    ({'above': float('inf')}, 'its bound must be finite'),
    ({'readings': 0}, 'readings at least 1'),
    ({'metric': 'time/sample'}, 'differs from machine to machine'),
  ):
    with pytest.raises(ValueError, match=words):
      dataclasses.replace(LONG, **changes)
  known = runs.experiment(tmp_path)
  stage = known.stages[0]
  with pytest.raises(ValueError, match='two of its stops are length above'):
    dataclasses.replace(stage, stops=(LONG, dataclasses.replace(LONG, readings=9)))
  away = dataclasses.replace(stage, stops=(StopWhen(metric='eval/maths/avg@1', below=0.5),))
  with pytest.raises(ValueError, match=r"StopWhen eval/maths.*report \['eval/sums/'\]"):
    inspection.check(dataclasses.replace(known, stages=(away,)), lambda text: None)
