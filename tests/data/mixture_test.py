"""Mixtures: shares, order, names and verdicts of several tasks behind one `Task`."""

import collections
import dataclasses
import json

import pytest

from opd_jax.data import problems, sources, stream
from opd_jax.data.mixture import Interleaved, mixture, only
from opd_jax.data.problems import Problem, Task
from opd_jax.data.stream import Stream
from opd_jax.data.tiny_worlds import calls, sums


def listed(tmp_path, name, count, **options):
  file = tmp_path / f'{name}.jsonl'
  rows = [{'problem': f'{name} {number}', 'answer': f'{name} {number}'} for number in range(count)]
  file.write_text('\n'.join(map(json.dumps, rows)) + '\n')
  read = problems.from_columns()
  return Task(name=name, source=sources.json_lines(str(file)), read=read, **options)


def order(task):
  return [task.source[number]['task'] for number in range(len(task.source))]


@pytest.mark.parametrize(
  'weights', [{'a': 0.7, 'b': 0.3}, {'a': 2, 'b': 1}, {'a': 1.0, 'b': 0.01}, {'a': 1, 'b': 3.3333}]
)
def test_any_stretch_holds_the_tasks_in_proportion_to_their_weights(tmp_path, weights):
  mixed = mixture({name: listed(tmp_path, name, 40) for name in 'ab'}, weights=weights)
  names = order(mixed)
  for name, weight in weights.items():
    fraction = weight / sum(weights.values())
    for end in range(1, len(names) + 1):
      assert abs(names[:end].count(name) - fraction * end) <= 1 + end / 1000
  assert mixture({name: listed(tmp_path, name, 3) for name in 'abc'}).source[2]['task'] == 'c'


def test_an_epoch_holds_every_row_and_begins_small_tasks_again(tmp_path):
  mixed = mixture({'a': listed(tmp_path, 'a', 10), 'b': listed(tmp_path, 'b', 3)})
  seen = collections.Counter(p.answer for p in stream.first(mixed, len(mixed.source)))
  assert len(mixed.source) == 20 and len(seen) == 13
  assert all(seen[f'a {number}'] == 1 for number in range(10))
  assert sorted(seen[f'b {number}'] for number in range(3)) == [3, 3, 4]


def test_a_row_follows_from_its_number_alone(tmp_path):
  tasks = {'a': listed(tmp_path, 'a', 10), 'b': listed(tmp_path, 'b', 7)}
  one, other = (mixture(tasks, weights={'a': 3, 'b': 2}).source for _ in range(2))
  numbers = range(len(one))
  assert [one[n] for n in numbers] == [other[n] for n in reversed(numbers)][::-1]


def test_streams_of_a_mixture_go_on_where_they_were(tmp_path):
  mixed = mixture({'a': listed(tmp_path, 'a', 10), 'b': listed(tmp_path, 'b', 7)})
  one, again = Stream(mixed, seed=3), Stream(mixed, seed=3)
  one.take(5)
  state = json.loads(json.dumps(one.state()))
  again.restore(state)
  assert one.take(9) == again.take(9)


def test_routes_name_the_task_and_choose_the_verifier(tmp_path):
  mixed = mixture({'maths': sums.sums(), 'tools': calls.calls()})
  for problem in stream.first(mixed, 10):
    assert problem.route in ('maths', 'tools')
    verdict = problems.verdict_of(mixed, problem, problem.demonstration)
    assert verdict.reward == 1.0
    assert problems.verdict_of(mixed, problem, '').reward == 0.0
  with pytest.raises(ValueError, match=r"row 4 has the route 'law'; the tasks are \['maths', 'too"):
    mixed.verify(Problem((), route='law', name='row 4'), '')


def test_a_task_without_a_verifier_gets_no_reward(tmp_path):
  told = lambda problem, text: problems.Verdict(0.5, 'half')
  mixed = mixture({'a': listed(tmp_path, 'a', 2, verify=told), 'b': listed(tmp_path, 'b', 2)})
  verdict = lambda route: problems.verdict_of(mixed, Problem((), route=route), '')
  assert (
    verdict('a') == problems.Verdict(0.5, 'half', 'correct')
    and verdict('b').reward != verdict('b').reward
  )
  assert mixture({'b': listed(tmp_path, 'b', 2)}).verify is None


def test_a_bad_row_is_named_by_the_file_and_line_of_its_own_task(tmp_path):
  tasks = {'a': listed(tmp_path, 'a', 4), 'b': listed(tmp_path, 'b', 4)}
  (tmp_path / 'b.jsonl').write_text('{"problem": "b 0", "answer": 0}\n\n{"problem": null}\n')
  with pytest.raises(ValueError, match=r'b\.jsonl, line 3: column problem holds null'):
    Stream(mixture(tasks)).take(8)
  skipping = {name: dataclasses.replace(task, on_bad_row='skip') for name, task in tasks.items()}
  assert len(stream.first(mixture(skipping), 6)) == 6
  with pytest.raises(ValueError, match='must agree on on_bad_row'):
    mixture({'a': tasks['a'], 'b': skipping['b']})


def test_rows_that_a_task_does_not_want_are_left_out(tmp_path):
  task = listed(tmp_path, 'a', 4)
  some = dataclasses.replace(
    task, read=lambda row: None if row['answer'] == 'a 1' else task.read(row)
  )
  assert [p.answer for p in stream.first(mixture({'a': some}), 3)] == ['a 0', 'a 2', 'a 3']


def test_mixtures_that_cannot_be_meant_are_refused(tmp_path):
  tasks = {'a': listed(tmp_path, 'a', 2), 'b': listed(tmp_path, 'b', 2)}
  refused = lambda words, *args, **options: pytest.raises(ValueError, match=words)
  with refused('at least one task'):
    mixture({})
  with refused(r"the tasks are \['a', 'b'\], the weights are those of \['a'\]"):
    mixture(tasks, weights={'a': 1.0})
  for weight in (0.0, -1.0, float('nan'), float('inf')):
    with refused('weights must be above 0 and finite'):
      mixture(tasks, weights={'a': 1.0, 'b': weight})
  with refused('below a thousandth of their sum'):
    mixture(tasks, weights={'a': 1.0, 'b': 1e-6})
  assert isinstance(mixture(tasks).source, Interleaved)
  with refused('are mixtures themselves'):
    mixture({'c': mixture(tasks)})


def test_a_mixture_is_drawn_where_all_its_tasks_are(tmp_path):
  """Then a few of its rows show what all are like, and nobody reads every one before step 0."""
  drawn = mixture({'a': sums.sums(), 'b': sums.sums(largest=4)})
  assert drawn.source.is_drawn and only(drawn, 'a').source.is_drawn
  some = mixture({'a': sums.sums(), 'b': listed(tmp_path, 'b', 3)})
  assert not some.source.is_drawn and not only(some, 'b').source.is_drawn
