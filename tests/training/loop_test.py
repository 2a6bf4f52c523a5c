"""A run survives: resumed anywhere it ends with the same bits, and what goes wrong is said in one message."""

import re
import shutil
import signal

import jax
import numpy as np
import pytest
import tiny_runs as runs

from opd_jax import judges
from opd_jax.commands import console
from opd_jax.commands import train as command
from opd_jax.methods import exopd, gkd, opd, seqkd
from opd_jax.sharding import mesh_layout
from opd_jax.training import loop, opening, preflight, verbs
from opd_jax.training.alarms import Alarm, Bounds, check_alarms
from opd_jax.training.runtime import build_runtime
from opd_jax.training.state import RunPosition, first_weights, initial_state


@pytest.fixture(scope='module')
def undisturbed(tmp_path_factory):
  folder = tmp_path_factory.mktemp('undisturbed')
  outcome = runs.run(runs.experiment(folder), folder / 'run')
  return folder, outcome


class Power(Exception):
  """The plug is pulled."""


@pytest.mark.parametrize('at', [1, 2, 3, 5])
def test_a_run_that_was_cut_off_ends_with_the_same_bits(undisturbed, tmp_path, at, monkeypatch):
  folder, whole = undisturbed
  experiment = runs.experiment(folder)

  def pull(done, total, text):
    if done == at:
      raise Power

  with pytest.raises(Power):
    runs.run(experiment, tmp_path, listener=loop.Listener(say=lambda text: None, progress=pull))
  resumed = runs.run(experiment, tmp_path)
  assert runs.metrics_of(tmp_path) == runs.metrics_of(folder / 'run')
  assert runs.digest_of(resumed) == runs.digest_of(whole)
  assert (tmp_path / 'samples.jsonl').read_text() == (folder / 'run' / 'samples.jsonl').read_text()


def test_the_metrics_tell_of_every_step(undisturbed):
  folder, outcome = undisturbed
  rows = runs.metrics_of(folder / 'run')
  assert outcome.finished and [row['step'] for row in rows if 'loss' in row] == [1, 2, 3, 4, 5, 6]
  assert [row['step'] for row in rows if 'eval/sums/avg@1' in row] == [0, 2, 3, 4, 6]
  last = rows[-2]
  assert {'entropy', 'teacher/overlap', 'teacher/mass', 'intervened', 'log_ratio_0.5', 'gap', 'grad_norm', 'repeats',
          'truncated', 'staleness', 'curve/entropy', 'idle', 'reward'} <= last.keys()  # fmt: skip
  assert last['gap'] < 1e-4 and len(last['curve/entropy']) == 8 and last['by_student'] == 1.0
  assert rows[1]['by_student'] == 0.0 and rows[1]['reward'] == 1.0  # text of the data set is right


def test_sigterm_saves_and_says_so(undisturbed, tmp_path):
  folder, whole = undisturbed
  said = []

  def stop(done, total, text):
    if done == 1:
      signal.raise_signal(signal.SIGTERM)

  outcome = runs.run(
    runs.experiment(folder), tmp_path, listener=loop.Listener(say=said.append, progress=stop)
  )
  assert (
    not outcome.finished
    and outcome.position.step == 1
    and 'run the same command to go on' in said[-1]
  )
  assert runs.digest_of(runs.run(runs.experiment(folder), tmp_path)) == runs.digest_of(whole)
  assert signal.getsignal(signal.SIGTERM) in (signal.SIG_DFL, None)


@pytest.mark.parametrize('number, status', [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_saves_and_is_the_exit_status(undisturbed, tmp_path, number, status, monkeypatch):
  folder, _ = undisturbed
  known = runs.experiment(folder)
  go = lambda: command.train(known, '', workdir=tmp_path, skip_preflight=True)
  with monkeypatch.context() as patch:
    stop = lambda line, done, total, text: done == 1 and signal.raise_signal(number)
    patch.setattr(console.RunLine, 'progress', stop)
    assert go() == status
  rows = [row['step'] for row in runs.metrics_of(tmp_path) if 'loss' in row]
  assert rows == [1] and not (tmp_path / 'student').exists()
  assert go() == 0
  assert runs.metrics_of(tmp_path) == runs.metrics_of(folder / 'run')


def test_another_configuration_is_refused_with_a_diff(undisturbed, tmp_path):
  folder, _ = undisturbed
  runs.run(runs.experiment(folder), tmp_path, config='rate = 1\nsteps = 6')
  with pytest.raises(ValueError, match=r'(?s)another configuration.*-rate = 1.*\+rate = 2'):
    runs.run(runs.experiment(folder), tmp_path, config='rate = 2\nsteps = 6')


@pytest.mark.parametrize('damage', ['truncated', 'flipped', 'lost'])
def test_a_damaged_checkpoint_is_reported_and_the_one_before_it_is_used(
  undisturbed, tmp_path, damage
):
  folder, whole = undisturbed
  runs.run(runs.experiment(folder), tmp_path)
  newest = max((tmp_path / 'checkpoints').iterdir(), key=lambda path: int(path.name.split('_')[-1]))
  files = [file for file in (newest / 'state').rglob('*') if file.is_file()]
  victim = max(files, key=lambda file: file.stat().st_size)
  content = bytearray(victim.read_bytes())
  if damage == 'lost':
    victim.unlink()
  else:
    content[len(content) // 2] ^= 255
    victim.write_bytes(content if damage == 'flipped' else content[: len(content) // 2])
  said = []
  outcome = runs.run(runs.experiment(folder), tmp_path, listener=loop.Listener(say=said.append))
  assert any('is damaged' in text for text in said) and any(
    'resumed at step 4' in text for text in said
  )
  assert runs.digest_of(outcome) == runs.digest_of(whole)
  assert [path.name[:7] for path in (tmp_path / 'damaged').iterdir()] == ['step_6_']


def test_a_teacher_that_is_away_damages_no_checkpoint(undisturbed, tmp_path, monkeypatch):
  folder, whole = undisturbed
  runs.run(runs.experiment(folder), tmp_path)
  shutil.rmtree(tmp_path / 'checkpoints' / 'step_6')
  with monkeypatch.context() as patch:
    patch.setattr(
      opening, 'abstract_state', lambda *a: (_ for _ in ()).throw(OSError('the hub is away'))
    )
    with pytest.raises(OSError, match='the hub is away'):
      runs.run(runs.experiment(folder), tmp_path)
  assert runs.digest_of(runs.run(runs.experiment(folder), tmp_path)) == runs.digest_of(whole)


def test_masters_are_float32_or_refused(undisturbed, tmp_path):
  folder, _ = undisturbed
  with pytest.raises(ValueError, match='would lose small updates'):
    runs.run(
      runs.experiment(folder, model=runs.dataclasses.replace(runs.CONFIG, param_dtype='bfloat16')),
      tmp_path,
    )
  mixed = runs.experiment(folder, model=runs.dataclasses.replace(runs.CONFIG, dtype='bfloat16'))
  state = runs.run(mixed, tmp_path / 'mixed').state
  assert {str(leaf.dtype) for leaf in jax.tree.leaves(state.params)} == {'float32'}
  losses = [
    [row['loss'] for row in runs.metrics_of(where) if 'loss' in row]
    for where in (tmp_path / 'mixed', folder / 'run')
  ]
  np.testing.assert_allclose(
    losses[0][:3], losses[1][:3], rtol=5e-3
  )  # later the student writes other text


def test_a_nan_of_the_teacher_rings_and_the_batch_is_kept(undisturbed, tmp_path, monkeypatch):
  folder, _ = undisturbed
  right = verbs.score

  def poisoned(runtime, weights, responses, position, *more):
    evidence = right(runtime, weights, responses, position, *more)
    if 'teacher' not in evidence.scores or position.step != 4:
      return evidence
    teacher = evidence.scores['teacher']
    teacher = teacher._replace(logp=teacher.logp * np.nan)
    return evidence._replace(scores={**evidence.scores, 'teacher': teacher})

  monkeypatch.setattr(verbs, 'score', poisoned)
  with pytest.raises(Alarm, match=r'at step 5: not finite.*alarm_step5\.npz'):
    runs.run(runs.experiment(folder), tmp_path)
  with np.load(tmp_path / 'alarm_step5.npz') as kept:
    assert any('response' in name for name in kept)
  monkeypatch.undo()
  assert runs.run(runs.experiment(folder), tmp_path).finished


def test_alarms_ring_at_their_bounds():
  row = {
    'step': 1,
    'loss': 1.0,
    'grad_norm': 1.0,
    'gap': 0.1,
    'truncated': 0.0,
    'teacher/student_mass': 0.9,
  }
  assert check_alarms(row, {}, Bounds())['truncated'] == 0.0
  with pytest.raises(Alarm, match='nats apart'):
    check_alarms({**row, 'gap': 0.3}, {}, Bounds())
  memory = {}
  with pytest.raises(Alarm, match='lengths explode'):
    for step in range(40):
      memory = check_alarms({**row, 'truncated': float(step > 5)}, memory, Bounds())
  memory = check_alarms(
    {**row, 'teacher/student_mass': 1e-4}, {}, Bounds()
  )  # a random student: no collapse
  with pytest.raises(Alarm, match='support has collapsed'):
    for step in range(40):
      memory = check_alarms(
        {**row, 'teacher/student_mass': 0.9 if step < 9 else 0.001}, memory, Bounds()
      )


@pytest.fixture(scope='module')
def twenty(tmp_path_factory):
  """Runs of twenty steps, ten of them on the student's own text: their metrics, and where they ended."""
  folder = tmp_path_factory.mktemp('twenty')

  def run(name, layout=None, **stage):
    known = runs.experiment(
      folder, prompts=8, layout=layout or mesh_layout(), evaluations=(), checkpoint_every=50
    )
    stages = tuple(runs.dataclasses.replace(each, steps=10, **stage) for each in known.stages)
    outcome = runs.run(runs.dataclasses.replace(known, stages=stages), folder / name)
    return [row for row in runs.metrics_of(folder / name) if 'loss' in row], outcome.state.params

  return run, run('whole')


@pytest.mark.parametrize(
  'way', [{'microbatches': 4}, {'layout': {'fsdp': 4, 'tensor': 2}}], ids=str
)
def test_twenty_steps_are_the_same_however_a_batch_is_cut_and_wherever_it_lies(twenty, way):
  run, (whole, ends) = twenty
  layout = {'layout': mesh_layout(**way['layout'])} if 'layout' in way else {}
  rows, params = run(str(way), **{**way, **layout})
  assert len(rows) == len(whole) == 20
  for what in ('loss', 'grad_norm', 'entropy', 'length', 'tokens'):
    np.testing.assert_allclose(
      *([row[what] for row in each] for each in (rows, whole)), rtol=1e-5, err_msg=what
    )
  assert runs.closeness(params, ends) < 1e-4


@pytest.mark.parametrize(
  'method', [opd.opd(), gkd.gkd(), seqkd.seqkd(), exopd.exopd()], ids=lambda m: m.paper
)
def test_every_kind_of_method_runs(undisturbed, tmp_path, method):
  folder, _ = undisturbed
  named = {'teacher': judges.frozen(runs.teacher_folder(folder)), 'reference': judges.itself()}
  stage = runs.dataclasses.replace(
    runs.experiment(folder).stages[1],
    method=method,
    judges=named,
    steps=2,
    updates=2,
    whole_diagnosis=True,
  )
  outcome = runs.run(
    runs.experiment(folder, stages=(stage,), checkpoint_every=1), tmp_path, skip_preflight=False
  )
  row = [row for row in runs.metrics_of(tmp_path) if 'loss' in row][-1]
  assert (
    outcome.finished
    and {'teacher/reverse_kl', 'teacher/forward_kl', 'teacher/entropy'} <= row.keys()
  )
  assert row['by_student'] == pytest.approx(
    {1.0: 1.0, 0.5: 0.5, 0.0: 0.0}[method.rollout.student], abs=0.2
  )


def test_a_self_teacher_follows_behind_the_update(undisturbed, tmp_path):
  folder, _ = undisturbed
  stage = lambda refresh: runs.dataclasses.replace(
    runs.experiment(folder).stages[1],
    method=opd.opd(),
    judges={'teacher': judges.itself(refresh=refresh)},
    steps=1,
  )
  start = first_weights(runs.experiment(folder), lambda text: None)
  ends = {}
  for name, refresh in (
    ('never', judges.never()),
    ('ema', judges.ema(rate=0.25)),
    ('every', judges.every(1)),
  ):
    ends[name] = runs.run(runs.experiment(folder, stages=(stage(refresh),)), tmp_path / name).state
  assert runs.closeness(ends['never'].snapshots['teacher'], start) == 0
  after = ends['ema'].params
  want = jax.tree.map(lambda phi, theta: phi + 0.25 * (theta - phi), start, after)
  assert runs.closeness(ends['ema'].snapshots['teacher'], want) < 1e-6
  assert ends['every'].snapshots == {}  # it is the student itself: nothing is kept


def test_refusals_of_an_experiment_name_what_is_missing(undisturbed, tmp_path):
  folder, _ = undisturbed
  common = runs.experiment(folder).stages[1]
  with pytest.raises(ValueError, match="no judge called 'teacher'"):
    runs.run(
      runs.experiment(folder, stages=(runs.dataclasses.replace(common, judges={}),)), tmp_path / 'a'
    )
  with pytest.raises(ValueError, match=r"needs the judges \['reference'\]"):
    runs.dataclasses.replace(common, method=exopd.exopd())
  with pytest.raises(
    ValueError, match='is not the MODEL of this experiment: width 32 instead of 64'
  ):
    wide = runs.dataclasses.replace(runs.CONFIG, width=64)
    runs.run(
      runs.experiment(folder, model=wide, weights=runs.teacher_folder(folder)), tmp_path / 'c'
    )
  with pytest.raises(ValueError, match='no stages'):
    runs.run(runs.experiment(folder, stages=()), tmp_path / 'd')
  with pytest.raises(ValueError, match='needs a tokenizer'):
    runs.run(runs.experiment(folder, tokenizer=None), tmp_path / 'e')
  with pytest.raises(ValueError, match='cannot be written'):
    (tmp_path / 'file').write_text('')
    runs.run(runs.experiment(folder), tmp_path / 'file' / 'run')


@pytest.mark.parametrize('role', ['student', 'teacher', 'method'])
def test_a_dry_step_that_is_not_finite_names_the_role_to_blame(undisturbed, tmp_path, role):
  folder, _ = undisturbed
  known = runs.experiment(folder)
  stage, state = known.stages[1], None
  if role == 'method':
    weigh = stage.method.weigh
    broken = runs.dataclasses.replace(
      stage.method, weigh=lambda evidence: _scaled(weigh(evidence), np.nan)
    )
    stage = runs.dataclasses.replace(stage, method=broken)
  known = runs.dataclasses.replace(known, stages=(stage,))
  runtime = build_runtime(known, 0)
  params = first_weights(known, lambda text: None)
  poisoned = jax.tree.map(lambda leaf: leaf * np.nan, params)
  if role == 'teacher':
    teacher = runs.dataclasses.replace(runtime.judges['teacher'], own=poisoned)
    runtime = runs.dataclasses.replace(runtime, judges={'teacher': teacher})
  state = initial_state(known, stage, poisoned if role == 'student' else params)
  words = {
    'student': r'weights of the student are not finite, e\.g\. in ',
    'teacher': r'weights of the teacher are not finite, e\.g\. in ',
    'method': rf'it is the method \({re.escape(stage.method.paper)}\)',
  }[role]
  with pytest.raises(ValueError, match=words):
    preflight.check(runtime, runtime.stream(), state, RunPosition(), lambda text: None)


def _scaled(terms, factor):
  return tuple(term._replace(coefficient=term.coefficient * factor) for term in terms)
