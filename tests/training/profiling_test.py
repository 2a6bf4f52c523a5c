"""A trace of some steps: it is there, it names what happened, and it ends where it was asked to."""

import gzip
import json

import pytest
import tiny_runs as runs

from opd_jax import cli
from opd_jax.training import loop


def traced(folder):
  """The events of the only trace of a run, and the bytes of the file that XProf reads."""
  [events] = (folder / 'profile').rglob('*.trace.json.gz')
  [planes] = (folder / 'profile').rglob('*.xplane.pb')
  with gzip.open(events) as stream:
    return json.load(stream)['traceEvents'], planes.read_bytes()


def test_a_trace_has_the_steps_that_were_asked_for_their_verbs_and_the_scopes_of_programs(tmp_path):
  said = []
  listener = loop.Listener(say=said.append)
  experiment = runs.experiment(tmp_path)
  runs.run(experiment, tmp_path / 'run', listener=listener, profile=range(4, 6))
  events, planes = traced(tmp_path / 'run')
  steps = [event['args']['step_num'] for event in events if event.get('name') == 'step']
  assert steps == ['4', '5']
  names = [event.get('name') for event in events]
  for verb in ('sample', 'score', 'weigh', 'update'):
    assert names.count(verb) == 2, verb
  assert (
    names.count('evaluate') == names.count('checkpoint') == 1
  )  # of step 4; those of 5 are not due
  for scope in (b'attention', b'mlp', b'student_head', b'optimiser', b'choose'):
    assert scope in planes, scope
  assert f'the trace of steps 4:5 lies in {tmp_path / "run" / "profile"}' in said


def test_a_trace_changes_no_number(tmp_path):
  runs.teacher_folder(tmp_path)
  one, two = (runs.experiment(tmp_path) for _ in range(2))
  plain = runs.run(one, tmp_path / 'plain')
  watched = runs.run(two, tmp_path / 'watched', profile=range(1, 3))
  assert runs.metrics_of(tmp_path / 'plain') == runs.metrics_of(tmp_path / 'watched')
  assert runs.digest_of(plain) == runs.digest_of(watched)


def test_a_run_that_is_cut_off_writes_what_it_traced_and_a_later_one_says_that_nothing_is_left(
  tmp_path,
):
  class Cut(Exception):
    pass

  def cut(done, total, text):
    if done == 3:
      raise Cut

  experiment, folder = runs.experiment(tmp_path), tmp_path / 'run'
  with pytest.raises(Cut):
    runs.run(experiment, folder, profile=range(2, 6), listener=loop.Listener(lambda _: None, cut))
  events, _ = traced(folder)
  assert [e['args']['step_num'] for e in events if e.get('name') == 'step'] == ['2', '3']
  said = []
  runs.run(experiment, folder, profile=range(1, 3), listener=loop.Listener(said.append))
  assert '--profile 1:2: the run goes on behind step 2, so nothing is traced' in said


def test_steps_that_are_not_there_are_refused(tmp_path, capsys):
  with pytest.raises(ValueError, match=r'--profile 5:9: the run has 6 steps.*e\.g\. --profile 5:6'):
    runs.run(runs.experiment(tmp_path), tmp_path / 'run', profile=range(5, 10))
  for wrong in ('0', '3:2', 'x', '2:', '-1'):
    with pytest.raises(SystemExit):
      cli.main(
        ['train', '--workdir', 'nowhere', f'--profile={wrong}' if wrong != '2:' else '--profile=:2']
      )
    assert (
      'a step or a first and a last one is expected, e.g. 12 or 12:14' in capsys.readouterr().err
    )
