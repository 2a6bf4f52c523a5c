"""`opd distil`: an experiment from flags, as a gin file that runs, resumes and is not written over."""

import json

import pytest

from opd_jax import cli


@pytest.fixture
def opd(tmp_path, monkeypatch, capfd):
  """Distils one tiny preset into another on twenty rows, in a folder of the user's own."""
  monkeypatch.chdir(tmp_path)
  rows = [{'q': f'{n}+1=', 'answer': n + 1, 'trace': f'{n + 1}'} for n in range(20)]
  (tmp_path / 'mine.jsonl').write_text('\n'.join(map(json.dumps, rows)))

  def run(*more):
    words = ['distil', '--student', 'tiny', '--teacher', 'tiny', '--data', 'mine.jsonl']
    words += ['--question', 'q', '--budget', '8', '--prompts', '4', '--workdir', 'run', *more]
    status = cli.main(words)
    captured = capfd.readouterr()
    return status, captured.out, captured.err

  return run


def test_flags_become_an_experiment_that_runs_and_resumes(opd, tmp_path):
  more = ('--verifier', 'last_number', '--steps', '2', '--demonstration', 'trace', '--warmup', '1')
  status, out, err = opd(*more)
  assert status == 0, err
  assert "include 'experiments/methods/opd.gin'" in (tmp_path / 'run/experiment.gin').read_text()
  assert 'data/avg@1' in out and (tmp_path / 'run/student').is_dir()
  status, out, _ = opd(*more)
  assert status == 0 and 'resumed at step 3 of 3' in out
  status, _, err = opd(*more, '--rate', '3e-4')
  assert status == 2 and 'run/experiment.gin holds another experiment' in err


def test_a_dry_run_shows_what_would_run(opd, tmp_path):
  status, out, err = opd('--dry_run', '--method', 'aopd', '--layout', 'fsdp')
  assert status == 0, err
  assert 'go on with: opd train --gin_file run/experiment.gin' in out
  assert not (tmp_path / 'run/metrics.jsonl').exists()


@pytest.mark.parametrize(
  'flags, words',
  [
    (['--method', 'oppd'], "no method is called 'oppd'"),
    (['--data', 'yours.jsonl'], 'yours.jsonl is no file here'),
    (['--question', 'prompt'], "has no column 'prompt'; it has 'q', 'answer', 'trace'"),
    (['--answer', 'gold'], "has no column 'gold'"),
    (['--warmup', '3'], '--demonstration'),
    (['--held_out', '2'], '--held_out must lie between 0 and 1'),
    (['--student', 'teeny'], "'teeny' is neither a folder nor a preset"),
  ],
)
def test_a_mistake_is_one_line(opd, flags, words):
  status, _, err = opd(*flags, '--dry_run')
  assert status == 2 and words in err and 'Traceback' not in err
