"""Who stands idle: the order of events by hand, and a plan that tells it."""

import dataclasses

import jax
import pytest
import tiny_runs as runs

from opd_jax import cli, judges
from opd_jax.planning import compiled, memory, overlap
from opd_jax.planning.flops import CHIPS
from opd_jax.planning.overlap import Times, idle
from opd_jax.sharding import mesh_layout
from opd_jax.training import inspection


def test_idle_shares_are_those_of_a_timeline_drawn_by_hand():
  """Write 2, learn 1, score 2: alone 5 s a step. With one batch ahead the student never waits and the teacher has 1 of
  3 s free; a teacher of 4 s is the bottleneck, and a second batch ahead cannot help."""
  of = lambda score, staleness: idle(Times(2.0, 1.0, {'teacher': score}), staleness)
  assert of(2.0, 0) == {'student': 0.4, 'teacher': 0.6}
  assert of(2.0, 1) == {'student': 0.0, 'teacher': pytest.approx(1 / 3, abs=1e-4)}
  assert of(4.0, 1) == {'student': 0.25, 'teacher': 0.0} == of(4.0, 2)
  two = idle(Times(2.0, 1.0, {'one': 3.0, 'other': 1.5}), 1)
  assert two == {'student': 0.0, 'one': 0.0, 'other': 0.5}
  assert idle(Times(2.0, 1.0, {}), 1) == {'student': 0.0}


def test_batches_of_unlike_length_want_more_of_them_on_their_way():
  """Whoever is balanced on average waits for a long batch; a second one on its way evens that out."""
  factors = [1.0, 3.0, 1.0, 1.0, 0.5, 2.5] * 20
  waits = [idle(Times(1.0, 1.0, {'teacher': 2.0}), s, factors)['student'] for s in (0, 1, 2)]
  assert waits[0] == pytest.approx(0.5, abs=0.01) and waits[0] > waits[1] > waits[2]


def test_a_plan_counts_a_judge_where_it_lies(tmp_path):
  """Half of the devices halve its speed and not the student's; it takes no room beside the student."""
  lay = lambda first, count: mesh_layout(fsdp=-1, first=first, count=count)

  def planned(layout):
    teacher = {'teacher': judges.frozen(runs.teacher_folder(tmp_path), layout=layout)}
    known = runs.experiment(tmp_path, distil={'judges': teacher, 'staleness': 1}, layout=lay(0, 4))
    known = dataclasses.replace(known, stages=known.stages[1:])
    return known, known.stages[0]

  wide, narrow, beside = (planned(each) for each in (lay(4, 4), lay(4, 2), None))
  of = lambda pair: overlap.times_of(*pair, CHIPS['h100'], 0.4, {})
  assert of(narrow).judges['teacher'] == pytest.approx(2 * of(wide).judges['teacher'])
  assert of(narrow)._replace(judges={}) == of(wide)._replace(judges={})
  assert not of(beside).judges
  assert of(beside).update == pytest.approx(of(wide).update + of(wide).judges['teacher'])
  assert memory.held(*wide).judges == 0 < memory.held(*beside).judges
  [(_, layout, size)] = memory.apart(*wide)
  assert str(layout) == 'data=1 x fsdp=4 x tensor=1 on cpu devices 4 to 7'
  assert size == memory.held(*beside).judges and not memory.apart(*beside)
  programs, residents = compiled.programs(wide[0], 0, 8)
  assert not residents.judges and [*residents.apart] == ['teacher']
  scores = next(each for each in programs if each.model == 'teacher')
  found = compiled.measured(scores, residents, devices=jax.devices()[:1])
  assert (found.verb, found.beside) == ('score teacher', 0)
  flops = [
    compiled.verbs(*each, [], compiled.programs(each[0], 0, 8)[1])['score teacher'].flops
    for each in (wide, narrow)
  ]
  assert flops[1] == pytest.approx(2 * flops[0]) and flops[0] > 0
  [look] = [each for each in inspection.inspect(wide[0]) if each.what == 'judge teacher']
  assert look.seen.endswith('; on data=1 x fsdp=4 x tensor=1 on cpu devices 4 to 7')


def test_opd_plan_and_opd_check_tell_of_it(tmp_path, capsys):
  files = ('models/tiny.gin', 'data/sums.gin', 'methods/async_opd.gin', 'judges/teacher_apart.gin')
  words = [word for file in files for word in ('--gin_file', f'experiments/{file}')]
  words += ['--gin_bindings', f"TEACHER = '{runs.teacher_folder(tmp_path, vocab_size=64)}'"]
  assert cli.main(['plan', *words, '--chip', 'h100']) == 0
  said = capsys.readouterr().out
  assert 'on each device of data=1 x fsdp=4 x tensor=1 on cpu devices 4 to 7' in said
  assert (
    'idle     staleness 0: student' in said and 'idle     staleness 1 (the stage): student' in said
  )
  assert cli.main(['check', *words]) == 0
  assert 'warning' not in capsys.readouterr().out
  assert cli.main(['check', *words, '--gin_bindings', 'TEACHER_DEVICES = 8']) == 2
  assert 'first=4, count=8 does not exist: cpu devices 0 to 7' in capsys.readouterr().err
