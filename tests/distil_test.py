"""`opd distil`: an experiment from flags, as a gin file that runs, resumes and is not written over."""

import json

import pytest

from opd_jax import cli
from opd_jax.commands import distil


@pytest.fixture
def opd(tmp_path, monkeypatch, capfd):
  """Distils one tiny preset into another on twenty rows, in a folder of the user's own."""
  monkeypatch.chdir(tmp_path)
  rows = [{'q': f'{n}+1=', 'answer': n + 1, 'trace': f'{n + 1}'} for n in range(20)]
  (tmp_path / 'mine.jsonl').write_text('\n'.join(map(json.dumps, rows)))

  def run(*more):
    words = ['distil', '--student', 'tiny', '--teacher', 'tiny', '--data', 'mine.jsonl']
    words += ['--question', 'q', '--budget', '8', '--prompts', '4', '--workdir', 'run', *more]
    try:
      status = cli.main(words)
    except SystemExit as ended:  # of a flag that cannot be parsed
      status = ended.code
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
  'flags, file',
  [
    (['--teacher_is', 'int8'], 'judges/teacher_int8.gin'),
    (['--teacher_is', 'foreign', '--method', 'dpca'], 'judges/foreign.gin'),
    *((['--layout', name], f'layouts/{name}.gin') for name in distil.LAYOUTS),
  ],
)
def test_a_teacher_or_a_layout_of_another_kind_is_a_file_that_is_there(opd, tmp_path, flags, file):
  status, _, err = opd('--dry_run', *flags)
  assert status == 0 or 'cannot share evenly' in err or 'no tokenizer lies beside tiny' in err, err
  assert f"include 'experiments/{file}'" in (tmp_path / 'run/experiment.gin').read_text()


def test_a_teacher_behind_a_server_is_named_by_its_address(opd, tmp_path):
  status, _, err = opd('--dry_run', '--teacher', 'http://127.0.0.1:9')
  assert status == 2 and err.startswith('opd distil: stage train: judge teacher'), err
  assert 'Start it, or bind the url of one that runs' in err and err.count('\n') == 1
  text = (tmp_path / 'run/experiment.gin').read_text()
  assert "URL = 'http://127.0.0.1:9'" in text and "include 'experiments/judges/served.gin'" in text


@pytest.mark.parametrize(
  'flags, words',
  [
    (['--method', 'oppd'], "no method is called 'oppd'"),
    (['--data', 'yours.jsonl'], 'yours.jsonl is no file here'),
    (['--data', 'mine/yours.jsonl'], 'mine/yours.jsonl is no file here'),
    (['--question', 'prompt'], "has no column 'prompt'; it has 'q', 'answer', 'trace'"),
    (['--answer', 'gold'], "has no column 'gold'"),
    (['--warmup', '3'], '--demonstration'),
    (
      ['--teacher', 'https://h', '--teacher_is', 'int8'],
      'is said of weights; https://h has its own',
    ),
    (
      ['--method', 'sft', '--demonstration', 'trace'],
      '--method sft asks no teacher. Leave --teacher',
    ),
    (['--method', 'gkd'], '--method gkd imitates responses of the data. Name their column'),
    (['--workdir', ''], '--workdir is an empty text'),
    (['--student', ''], '--student is an empty text'),
    (['--microbatches', '1000'], 'a microbatch has a row at least'),
    (['--rate', '1e-300'], 'rate must lie between 1e-30 and 1e+30'),
    (['--rate', '1e39'], 'rate must lie between 1e-30 and 1e+30'),
    (['--rate', 'nan'], 'argument --rate: a number above 0 is expected, got nan'),
    (['--teacher', 'HTTP://127.0.0.1:99999'], 'names port 99999'),
    (['--held_out', '2'], '--held_out must lie between 0 and 1'),
    (['--student', 'teeny'], "'teeny' is neither a folder nor a preset"),
  ],
)
def test_a_mistake_is_one_line(opd, flags, words):
  status, _, err = opd(*flags, '--dry_run')
  assert status == 2 and words in err and 'Traceback' not in err and err.count('\n') == 1


def test_a_dry_run_may_be_mended_until_the_run_begins_or_somebody_changes_its_file(opd, tmp_path):
  assert opd('--dry_run', '--rate', '1e-3')[0] == 0
  assert opd('--dry_run', '--rate', '1e-4')[0] == 0
  file = tmp_path / 'run' / 'experiment.gin'
  written = file.read_text()
  assert 'RATE = 0.0001' in written
  file.write_text(written.replace('RATE = 0.0001', 'RATE = 0.5'))
  status, _, err = opd('--dry_run', '--rate', '1e-4')
  assert status == 2 and 'holds another experiment' in err
  file.write_text(written)
  (tmp_path / 'run' / 'metrics.jsonl').write_text('')
  status, _, err = opd('--dry_run', '--rate', '1e-3')
  assert status == 2 and 'holds another experiment' in err


@pytest.mark.parametrize(
  'line, words',
  [
    ('5', 'mine.jsonl, line 1: int instead of an object'),
    ('no', 'mine.jsonl, line 1: not JSON'),
    ('{"q": "\\ud800", "answer": "1"}', 'column q holds half a character at position 0'),
  ],
)
def test_a_first_line_that_is_no_row_is_named(opd, tmp_path, line, words):
  rows = (tmp_path / 'mine.jsonl').read_text()
  (tmp_path / 'mine.jsonl').write_text(f'{line}\n{rows}')
  status, _, err = opd('--dry_run')
  assert status == 2 and words in err and 'Traceback' not in err


def test_a_mark_that_an_editor_puts_in_front_is_no_part_of_the_first_row(opd, tmp_path):
  rows = (tmp_path / 'mine.jsonl').read_text()
  (tmp_path / 'mine.jsonl').write_text('\ufeff' + rows)
  assert opd('--dry_run')[0] == 0
