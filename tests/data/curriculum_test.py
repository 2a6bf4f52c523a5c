"""Mixtures whose weights move: shares, what a checkpoint keeps, and what is refused."""

import json

import pytest

from opd_jax.data import curriculum, problems, sources
from opd_jax.data.mixture import mixture
from opd_jax.data.problems import Task
from opd_jax.data.stream import Stream
from opd_jax.ramps import Piecewise, Ramp, Stepped

AWAY = Ramp(begin=1.0, end=0.0, steps=10)
COMING = Ramp(begin=0.0, end=3.0, steps=10)
LATER = Stepped(name='hard', begin=0.0, end=1.0, by=0.5, metric='reward', above=0.5)


def listed(tmp_path, name, count=5):
  file = tmp_path / f'{name}.jsonl'
  rows = [{'problem': f'{name} {number}', 'answer': name} for number in range(count)]
  file.write_text('\n'.join(map(json.dumps, rows)) + '\n')
  return Task(name=name, source=sources.json_lines(str(file)), read=problems.from_columns())


def mixed(tmp_path, **weights):
  return mixture({name: listed(tmp_path, name) for name in weights}, weights=weights)


def asked(stream, step, count=20, **options):
  return [problem.route for problem in stream.take(count, step=step, **options)]


def test_shares_follow_the_weights_of_the_step(tmp_path):
  stream = curriculum.stream_of(mixed(tmp_path, a=AWAY, b=COMING), seed=0)
  assert set(asked(stream, 0)) == {'a'} and set(asked(stream, 10)) == {'b'}
  assert asked(stream, 5, count=400).count('b') in (299, 300, 301)  # 0.5 to 1.5


def test_a_weight_may_look_at_a_metric(tmp_path):
  task = mixed(tmp_path, easy=1.0, hard=LATER)
  stream = curriculum.stream_of(task, seed=0)
  assert set(asked(stream, 3)) == {'easy'}
  assert asked(stream, 3, count=90, decisions={'hard': 0.5}).count('hard') == 30
  assert curriculum.weights_that_watch(task) == (LATER,)


def test_a_task_goes_on_where_it_was(tmp_path):
  """An epoch of a task holds each of its rows once, whatever else is asked in between."""
  stream = curriculum.stream_of(mixed(tmp_path, a=AWAY, b=COMING), seed=0)
  seen = [problem for step in range(11) for problem in stream.take(3, step=step)]
  for task in 'ab':
    texts = [problem.messages[0]['content'] for problem in seen if problem.route == task]
    assert len(texts) > 10 and len(set(texts[:5])) == 5 and set(texts[5:10]) == set(texts[:5])
  assert seen[0].id.startswith('a: a.jsonl') and seen[0].name.startswith(str(tmp_path))


def test_it_goes_on_from_what_json_holds(tmp_path):
  task = mixed(tmp_path, a=AWAY, b=COMING)
  one, again = (curriculum.stream_of(task, seed=3) for _ in range(2))
  one.take(7, step=4)
  again.restore(json.loads(json.dumps(one.state())))
  assert one.take(20, step=5) == again.take(20, step=5)
  other = curriculum.stream_of(task, seed=4)
  other.take(7, step=4)
  assert one.take(20, step=5) != other.take(20, step=5)


def test_weights_that_stand_still_leave_the_order_as_it_was(tmp_path):
  task = mixed(tmp_path, a=2, b=1)
  assert isinstance(curriculum.stream_of(task, seed=3), Stream)


def test_a_step_in_which_nothing_is_asked_is_refused(tmp_path):
  gone = Piecewise(points=((0, 0.0), (10, 1.0)))
  for weights in ({'a': COMING}, {'a': AWAY, 'b': AWAY}, {'a': LATER, 'b': COMING}):
    with pytest.raises(ValueError, match=r'at step (0|10) of the stage all weights are 0'):
      mixed(tmp_path, **weights)
  mixed(tmp_path, a=AWAY, b=gone)
  with pytest.raises(ValueError, match='weights must be above 0 and finite'):
    mixed(tmp_path, a=Ramp(begin=1.0, end=-1.0, steps=3), b=1.0)
