"""Batches that are written before their turn: by which weights, who scores meanwhile, what a checkpoint keeps."""

import dataclasses
import signal
import threading

import jax
import numpy as np
import optax
import pytest
import tiny_runs as runs

from opd_jax import judges
from opd_jax.inference.sampler import Sampling
from opd_jax.judges.local import LocalJudge
from opd_jax.methods import async_opd, opd, safe_top_k
from opd_jax.responses import check_fresh
from opd_jax.sharding import mesh_layout
from opd_jax.training import inspection, loop, recorder, verbs
from opd_jax.training.clock import Clock

APART = mesh_layout(first=7, count=1)


def stale(folder, staleness, *, layout=APART, method=None, steps=6, **changes):
  """A run of one stage whose teacher has a device of its own."""
  teacher = {'teacher': judges.frozen(runs.teacher_folder(folder), layout=layout)}
  known = runs.experiment(folder)
  stage = dataclasses.replace(
    known.stages[1], method=method or async_opd.async_opd(), judges=teacher, steps=steps,
    staleness=staleness, sampling=Sampling(budget=8, slots=4), **changes,
  )  # fmt: skip
  return dataclasses.replace(known, stages=(stage,))


def learnt(workdir):
  return [row for row in runs.metrics_of(workdir) if 'loss' in row]


@pytest.mark.parametrize(
  'method', [async_opd.async_opd(), safe_top_k.safe_top_k(k=4)], ids=['plain', 'at']
)
def test_where_weights_do_not_move_staleness_changes_nothing(tmp_path, method):
  """The same rows in the same order with the same scores, bit for bit; only the age of the text differs."""
  rows = []
  for staleness in (0, 1, 2):
    experiment = stale(tmp_path, staleness, method=method, optimiser=optax.sgd(0.0))
    outcome = runs.run(experiment, tmp_path / str(staleness))
    rows.append(learnt(tmp_path / str(staleness)))
    assert outcome.position.rows == 6 * 8
  ages = [[row.pop('staleness') for row in each] for each in rows]
  assert ages == [[0, 0, 0, 0, 0, 0], [0, 1, 1, 1, 1, 1], [0, 1, 2, 2, 2, 2]]
  skipped = [[row.pop('skipped') for row in each] for each in rows]
  assert skipped[0] == skipped[1] == skipped[2]
  assert rows[0] == rows[1] == rows[2]


def test_each_batch_is_of_the_weights_that_its_number_says(tmp_path, monkeypatch):
  """With staleness 2, batch k is of the weights of step k - 2, and is learnt from by those of step k."""
  written, right = [], verbs.sample

  def seen(runtime, weights, problems, position, *, version=None):
    norm = float(optax.tree.norm(weights.student))
    written.append((position.stage_step, version, norm))
    return right(runtime, weights, problems, position, version=version)

  monkeypatch.setattr(verbs, 'sample', seen)
  runs.run(stale(tmp_path, 2), tmp_path / 'run')
  norms = {version: norm for _, version, norm in written}
  assert [number for number, *_ in written] == [0, 1, 2, 3, 4, 5]
  assert [version for _, version, _ in written] == [0, 0, 0, 1, 2, 3]
  after = [row['param_norm'] for row in learnt(tmp_path / 'run')]
  np.testing.assert_allclose([norms[step] for step in (1, 2, 3)], after[:3], rtol=1e-6)


@pytest.mark.parametrize('layout', [APART, None], ids=['apart', 'beside'])
def test_a_run_that_was_cut_goes_on_with_the_batches_on_their_way(tmp_path, layout):
  experiment = stale(tmp_path, 2, layout=layout, optimiser=optax.sgd(0.01))
  whole = runs.run(experiment, tmp_path / 'whole')

  def cut(done, total, text):
    if done == 3:
      signal.raise_signal(signal.SIGTERM)

  listener = loop.Listener(say=lambda text: None, progress=cut)
  assert not runs.run(experiment, tmp_path / 'cut', listener=listener).finished
  rest = runs.run(experiment, tmp_path / 'cut')
  assert runs.metrics_of(tmp_path / 'cut') == runs.metrics_of(tmp_path / 'whole')
  assert runs.digest_of(rest) == runs.digest_of(whole)
  fresh = stale(tmp_path, 0, layout=layout, optimiser=optax.sgd(0.01))
  other = runs.run(fresh, tmp_path / 'fresh')
  assert runs.digest_of(other) != runs.digest_of(whole), 'staleness is seen in the weights'


def test_a_judge_apart_scores_a_batch_while_the_one_before_is_learnt_from(tmp_path, monkeypatch):
  """Its second scoring waits until an update begins: without overlap nobody would begin one."""
  updating, scored = threading.Event(), []
  score, updates = LocalJudge.score, verbs.updates

  def waits(judge, *more):
    if judge.name == 'teacher' and len(scored) == 1:
      assert updating.wait(60), 'no update began while the judge was at work'
      assert threading.current_thread() is not threading.main_thread()
    scored.append(judge.name)
    return score(judge, *more)

  def begins(*arguments):
    updating.set()
    return updates(*arguments)

  monkeypatch.setattr(LocalJudge, 'score', waits)
  monkeypatch.setattr(verbs, 'updates', begins)
  experiment = dataclasses.replace(stale(tmp_path, 1, steps=3), evaluations=())
  assert runs.run(experiment, tmp_path / 'run').finished
  assert scored.count('teacher') == 3
  rows = recorder.read(tmp_path / 'run')
  assert all({'time/idle/student', 'time/idle/teacher'} <= row.keys() for row in rows)


def test_what_a_judge_in_a_thread_refuses_stops_the_run(tmp_path, monkeypatch):
  def refuses(judge, *more):
    raise ValueError('judge teacher: no')

  monkeypatch.setattr(LocalJudge, 'score', refuses)
  with pytest.raises(ValueError, match='judge teacher: no'):
    runs.run(dataclasses.replace(stale(tmp_path, 1), evaluations=()), tmp_path / 'run')


def test_text_that_is_older_than_the_stage_allows_is_refused(tmp_path):
  """Even of a method that corrects for age."""
  runtime, state = runs.at_work(tmp_path, stale(tmp_path, 1).stages[0].judges, staleness=1)
  position = loop.RunPosition()
  problems = runtime.take(runtime.stream(), position)
  rollout = verbs.sample(runtime, state.weights, problems, position).rollout
  check_fresh(rollout, version=1, may_be_older=False, staleness=1)
  with pytest.raises(ValueError, match=r'version 0 wrote it, those of version 2.*allows 1 between'):
    check_fresh(rollout, version=2, may_be_older=True, staleness=1)


def test_a_method_that_does_not_correct_for_age_is_warned_of(tmp_path):
  warned = lambda method, staleness: inspection.warnings_of(
    stale(tmp_path, staleness, method=method)
  )
  assert not warned(opd.opd(), 0) and not warned(async_opd.async_opd(), 1)
  (text,) = warned(opd.opd(), 1)
  assert 'batches are written by weights 1 older, and PolicyGradient() takes its text' in text
  (text,) = inspection.warnings_of(stale(tmp_path, 1, layout=None))
  assert 'no judge of stage distil has devices of its own' in text


def test_the_student_writes_on_a_range_of_its_own(tmp_path):
  """Text, and so everything that is learnt, is the same where it is written on other devices."""
  known = dataclasses.replace(stale(tmp_path, 0), evaluations=())
  runs.run(known, tmp_path / 'home')
  away = dataclasses.replace(known, sampling_layout=mesh_layout(first=2, count=1))
  runs.run(away, tmp_path / 'away')
  assert learnt(tmp_path / 'home') == learnt(tmp_path / 'away')


def test_the_clock_tells_who_stands_idle():
  """A step of ten seconds: the judge works for six, three of them alone."""
  now = [0.0]
  clock = Clock(['teacher'], now=lambda: now[0])
  clock.begin()
  with clock.busy('teacher'):
    now[0] = 3.0
    with clock.waiting('teacher', busy=False):
      now[0] = 6.0
  with clock.waiting('student'):
    now[0] = 10.0
  assert clock.idle() == {'time/idle/student': 0.3, 'time/idle/teacher': 0.4}
  with clock.busy('teacher'):
    now[0] = 14.0
    assert clock.idle()['time/idle/teacher'] == 0.0
    now[0] = 16.0
  now[0] = 18.0
  assert clock.idle() == {'time/idle/student': 0.0, 'time/idle/teacher': 0.5}
  assert Clock([]).idle() == {}


def test_ranges_of_devices():
  layout = mesh_layout(fsdp=-1, first=4, count=4)
  assert [each.id for each in layout.mesh.devices.flat] == [each.id for each in jax.devices()[4:8]]
  assert layout.apart(mesh_layout(fsdp=4)) and not layout.apart(mesh_layout(fsdp=8))
  assert mesh_layout(tensor=2, first=6).mesh.size == 2
  for sizes, words in (
    ({'first': 6, 'count': 4}, 'first=6, count=4 does not exist: cpu devices 0 to 7 are here'),
    ({'first': 8}, 'first=8, count=None does not exist'),
    ({'first': 4, 'count': 4, 'fsdp': 8}, 'needs 8 devices, 4 cpu device.* in the range from number 4'),
    ({'first': 4, 'count': 4, 'fsdp': 2}, 'uses 2 of the 4 devices from number 4 on'),
    ({'first': -1}, 'first is a whole number from 0 on'),
    ({'count': 0}, 'count is a whole number from 1 on'),
  ):  # fmt: skip
    with pytest.raises(ValueError, match=words):
      _ = mesh_layout(**sizes).mesh
