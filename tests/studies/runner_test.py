"""The runner: order, rates, failures, kills. Workers are stubs, but for one study that is trained."""

import dataclasses
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import stub_study

from opd_jax import cli
from opd_jax.report import folders
from opd_jax.studies import folder
from opd_jax.studies.ledger import DONE, PROVENANCE, Ledger
from opd_jax.studies.runner import Runner
from opd_jax.studies.study import Cell, Study, read_study

TESTS = Path(__file__).parent.parent
TOY, STUB, ROOT = TESTS / 'toy_study.py', TESTS / 'stub_study.py', TESTS.parent


@pytest.fixture
def run(tmp_path, monkeypatch):
  """Runs a study with stub workers; returns its ledger and what was said."""
  monkeypatch.setattr(Runner, 'command', stub_study.stubbed(0.0))
  monkeypatch.setattr(Runner, 'worker', stub_study.WORKER)

  def run(study, jobs=4):
    ledger, said = Ledger(study, tmp_path), []
    with folder.locked(tmp_path) as lock:
      runner = Runner(ledger, TOY, lock=lock, origin={'commit': 'abc'})
      assert runner.run(jobs=jobs, say=said.append, progress=lambda done, total, name: None)
    return ledger, said

  return run


def changed(name: str, **changes) -> Study:
  """The toy study with another cell of that name."""
  study = read_study(TOY)
  cells = [dataclasses.replace(c, **changes) if c.name == name else c for c in study.cells]
  return dataclasses.replace(study, cells=tuple(cells))


def runs_in(root: Path) -> list[str]:
  return sorted(str(file.parent.relative_to(root / 'runs')) for file in root.rglob(DONE))


def test_every_seed_has_its_runs_and_a_shared_cell_one(run, tmp_path):
  ledger, said = run(read_study(TOY))
  assert runs_in(tmp_path) == [
    'opd/0.0001/9', 'opd/0.001/1', 'opd/0.001/2', 'opd/0.001/9',
    'teacher/default/0', 'weak/default/1', 'weak/default/2', 'weak/default/9',
  ]  # fmt: skip
  assert ledger.total() == {'teacher': 1, 'weak': 3, 'opd': 4} and not said
  told = json.loads((tmp_path / 'runs/opd/0.001/2' / PROVENANCE).read_text())
  assert told['commit'] == 'abc' and told['tokens'] == 50 and told['seconds'] >= 0
  assert not told['resumed'] and told['command'][:2] == ['opd', 'train']


def test_what_is_done_is_not_done_again(run, tmp_path):
  run(read_study(TOY))
  files = list(tmp_path.rglob(PROVENANCE))
  before = {file: file.stat().st_mtime_ns for file in files}
  again = tmp_path / 'runs/weak/default/1'
  (again / DONE).unlink()
  run(read_study(TOY))
  assert [f for f in files if f.stat().st_mtime_ns != before[f]] == [again / PROVENANCE]
  assert json.loads((again / PROVENANCE).read_text())['resumed']


def test_the_training_command_of_a_run(tmp_path):
  ledger = Ledger(read_study(TOY), tmp_path)
  for where in ('teacher/default/0', 'weak/default/1', 'weak/default/9', 'opd/0.0001/9'):
    (tmp_path / 'runs' / where).mkdir(parents=True)
    (tmp_path / 'runs' / where / DONE).write_text('{}')
  runner = Runner(ledger, TOY, lock=0, origin={}, flags=('--skip_preflight',))
  words = runner.command(ledger.trials(ledger.study.cell('opd'))[1])
  assert words[:2] == ['opd', 'train'] and words[-1] == '--skip_preflight'
  files = [word for word in words if word.endswith('.gin')]
  assert [Path(file).name for file in files] == ['small.gin', 'sums.gin', 'opd.gin', 'teacher.gin']
  assert all(Path(file).is_absolute() for file in files)
  assert f'TEACHER = "{tmp_path}/runs/teacher/default/0/student"' in words
  assert f'WEIGHTS = "{tmp_path}/runs/weak/default/9/student"' in words
  assert 'RATE = 0.001' in words and 'experiment.Experiment.seed = 9' in words


def test_a_cell_that_fails_is_named_and_the_others_go_on(run, tmp_path):
  ledger, said = run(changed('weak', rates=(1.0,)))
  assert runs_in(tmp_path) == ['teacher/default/0']
  assert len(said) == 3 and said[0].startswith('weak rate 1 seed')
  assert 'failed: exit status 1: opd train: the loss is not finite (' in said[0]
  skipped = ledger.survey().skipped
  assert skipped['opd'] == 'no rate of opd could be tried'
  assert skipped['opd rate 0.001 seed 9'] == 'it needs weak rate 1 seed 9'


def test_a_worker_that_dies_is_replaced(run, monkeypatch, tmp_path):
  value_of = stub_study.value_of
  monkeypatch.setattr(
    stub_study, 'value_of', lambda run: 101.0 if run.rate == 1e-3 else value_of(run)
  )
  _, said = run(read_study(TOY), jobs=1)
  assert len(said) == 1 and said[0].startswith('opd rate 0.001 seed 9 failed: exit status -9')
  assert {'opd/0.0001/1', 'opd/0.0001/2'} < set(runs_in(tmp_path))


def test_a_rate_that_fails_is_out_of_the_choice(run, tmp_path):
  ledger, said = run(changed('opd', rates=(1e-4, 1e-3, 1.0)))
  assert len(said) == 1 and said[0].startswith('opd rate 1 seed 9 failed')
  assert ledger.rate(ledger.study.cell('opd')) == 1e-3
  assert {'opd/0.001/1', 'opd/0.001/2'} < set(runs_in(tmp_path))


def test_a_trial_without_the_measure_fails_by_name(run, tmp_path):
  study = read_study(TOY)
  other = dataclasses.replace(study.measures[0], key='eval/sums/avg@4')
  _, said = run(dataclasses.replace(study, measures=(other, *study.measures[1:])))
  assert len(said) == 2 and all('has no eval/sums/avg@4' in text for text in said)


def test_a_cell_whose_gin_file_is_not_there_is_refused_before_anything_runs(tmp_path):
  study = changed('opd', files=('experiments/nowhere.gin',))
  with pytest.raises(ValueError, match=r'gin file not found: experiments/nowhere\.gin'):
    folder.claim(study, TOY, tmp_path)


def test_a_folder_is_locked_until_the_last_worker_has_ended(tmp_path):
  with folder.locked(tmp_path) as lock:
    worker = subprocess.Popen([sys.executable, '-c', 'input()'], stdin=-1, pass_fds=(lock,))
  try:
    refusal = pytest.raises(ValueError, match='or a run that it began, is at work in')
    with refusal, folder.locked(tmp_path):
      pass
  finally:
    worker.communicate(b'\n')
  with folder.locked(tmp_path):
    pass


def start(file, root, *, seconds):
  command = [sys.executable, str(STUB), str(seconds), str(file), '--workdir', str(root)]
  environment = {**os.environ, 'PYTHONPATH': f'{ROOT}{os.pathsep}{TESTS}'}
  return subprocess.Popen(
    [*command, '--jobs', '2'],
    env=environment,
    cwd=ROOT,
    stdout=subprocess.PIPE,
    stderr=subprocess.DEVNULL,
    text=True,
    start_new_session=True,
  )


def table_of(output: str) -> str:
  return output[output.index('\ntoy\n') :]


def kill_when(process, condition) -> None:
  """SIGKILL to the whole process group, as soon as the condition holds."""
  while not condition():
    assert process.poll() is None, 'it ended before it was killed'
    time.sleep(0.01)
  os.killpg(process.pid, signal.SIGKILL)
  process.communicate()


def test_a_study_that_is_killed_twice_ends_with_the_same_table(tmp_path):
  whole = start(TOY, tmp_path / 'whole', seconds=0.0)
  killed = tmp_path / 'killed'
  begun = lambda: len(list(killed.rglob('metrics.jsonl')))
  done = lambda: len(runs_in(killed))
  kill_when(start(TOY, killed, seconds=0.1), lambda: begun() == 2)
  assert done() == 0
  kill_when(start(TOY, killed, seconds=0.1), lambda: done() >= 4)
  last = start(TOY, killed, seconds=0.0)
  output, reference = last.communicate()[0], whole.communicate()[0]
  assert last.returncode == 0 == whole.returncode
  left = int(output[: output.index(' runs left: ')].split()[-1])
  assert 0 < left <= 4 and '8 runs left' in reference
  assert table_of(output) == table_of(reference)
  assert '0.0001: 0.' in output and 'OPD makes responses longer' in output
  assert runs_in(killed) == runs_in(tmp_path / 'whole')


def test_a_study_that_is_asked_to_end_takes_its_workers_along(tmp_path):
  process = start(TOY, tmp_path, seconds=10.0)
  while len(list(tmp_path.rglob('metrics.jsonl'))) < 2:
    assert process.poll() is None
    time.sleep(0.01)
  process.send_signal(signal.SIGTERM)
  process.communicate(timeout=10)
  assert process.returncode == 130 and not runs_in(tmp_path)
  with folder.locked(tmp_path):
    pass


def test_the_command_names_failures_and_refuses_another_study(tmp_path, monkeypatch, capsys):
  monkeypatch.setattr(Runner, 'command', stub_study.stubbed(0.0))
  monkeypatch.setattr(Runner, 'worker', stub_study.WORKER)
  monkeypatch.setattr(folder, 'origin', dict)
  text = TOY.read_text().replace('rates=(1e-4, 1e-3)', 'rates=(1e-4, 1e-3, 1.0)')
  (tmp_path / 'x.py').write_text(text)
  words = ['study', str(tmp_path / 'x.py'), '--workdir', str(tmp_path / 'runs')]
  monkeypatch.chdir(ROOT)
  assert cli.main([*words, '--table']) == 2
  assert 'holds no study. Run it first' in capsys.readouterr().err
  assert cli.main([*words, '--jobs', '0']) == 2
  assert cli.main([*words, '--jobs', '4']) == 1
  output = capsys.readouterr().out
  assert (
    '0.001 (an end)' not in output and 'printed: accuracy, % as Pass@1, 90 problems x 16' in output
  )
  assert '9 runs left: 8 s with 4 at a time, and 5 runs nobody has timed' in output
  assert 'failed   opd rate 1 seed 9: exit status 1: opd train: the loss is not finite' in output
  assert cli.main([*words, '--table']) == 1
  assert table_of(capsys.readouterr().out) == table_of(output)
  [shown] = folders.read([tmp_path / 'runs'])[1]
  assert shown.title == 'toy' and {row.verdict for row in shown.claims} <= {
    'agrees',
    'contradicts',
    'cannot tell',
  }
  (tmp_path / 'x.py').write_text(
    text.replace("name='weak'", "name='feeble'").replace('weak', 'feeble')
  )
  assert cli.main(words) == 2
  assert 'holds another study: it has a cell weak' in capsys.readouterr().err


def test_a_study_is_trained_and_killed_on_the_way(tmp_path):
  """Two cells, the real command: the second takes the student of the first."""
  file = tmp_path / 'x.py'
  file.write_text(f"""
import dataclasses, runpy
toy = runpy.run_path({str(TOY)!r})
warm = toy['Cell'](name='warm', files=toy['SFT'], bindings=toy['TINY'])
more = dataclasses.replace(
  warm, name='more', bindings=(*toy['TINY'], 'WEIGHTS = "{{warm}}"'), after=('warm',)
)
contrasts = (toy['Contrast'](claim='more', order=('warm', 'more')),)
STUDY = dataclasses.replace(
  toy['STUDY'], cells=(warm, more), seeds=(1,), tuning_seeds=(), contrasts=contrasts, printed=()
)
""")
  root = tmp_path / 'runs'
  command = [sys.executable, '-m', 'opd_jax.cli', 'study', str(file), '--workdir', str(root)]
  options = {'cwd': ROOT, 'stdout': -1, 'stderr': -1, 'text': True, 'start_new_session': True}
  begin = lambda: subprocess.Popen([*command, '--skip_preflight'], **options)
  first = root / 'runs/warm/default/1/metrics.jsonl'
  kill_when(begin(), lambda: first.exists() and len(first.read_text().splitlines()) >= 2)
  last = begin()
  output, errors = last.communicate()
  assert last.returncode == 0, errors
  assert '2 runs left' in output and 'cannot tell' in output
  told = [json.loads(file.read_text()) for file in sorted(root.rglob(PROVENANCE))]
  assert [one['resumed'] for one in told] == [False, True]
  assert all(one['tokens'] > 0 and 'cpu' in one['device'] for one in told)
  steps = [json.loads(line)['step'] for line in first.read_text().splitlines()]
  assert steps == sorted(steps) and steps[-1] == 3


def test_runs_of_different_cells_begin_first(run, tmp_path, monkeypatch):
  """Together, runs of one cell would all compile the same programs."""
  begun, begin = [], Runner._begin
  monkeypatch.setattr(Runner, '_begin', lambda self, one: (begun.append(one), begin(self, one))[1])
  cells = [
    Cell(name=name, files=('experiments/models/small.gin',), rates=(1e-3, 1e-4))
    for name in ('a', 'b')
  ]
  study = dataclasses.replace(read_study(TOY), cells=tuple(cells), contrasts=(), printed=())
  run(study, jobs=2)
  assert {one.cell.name for one in begun[:2]} == {'a', 'b'}
