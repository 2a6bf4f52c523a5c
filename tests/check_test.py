"""`opd check`: everything that an experiment names is opened, and all mistakes are told at once."""

import json
from types import SimpleNamespace

import pytest

from opd_jax import cli
from opd_jax.configuration import build
from opd_jax.training import inspection

SHIPPED = ('models/tiny', 'methods/opd', 'judges/teacher', 'data/jsonl')
BINDINGS = {
  'TEACHER': '"tiny"',
  'DATA': '"rows.jsonl"',
  'STEPS': '3',
  'PROMPTS': '4',
  'BUDGET': '8',
}
MORE = {'VERIFIER': '@texts.last_number', 'evaluator.Evaluation.problems': '4'}


@pytest.fixture
def opd(tmp_path, monkeypatch, capfd, pytestconfig):
  """Checks an experiment on eighty rows of somebody's own, with further bindings."""
  monkeypatch.chdir(tmp_path)
  rows = [{'problem': f'{n}+1=', 'answer': n + 1} for n in range(80)]
  (tmp_path / 'rows.jsonl').write_text('\n'.join(map(json.dumps, rows)))
  rows[70] |= {'problem': None}
  rows[78] |= {'answer': [79]}
  (tmp_path / 'bad.jsonl').write_text('\n'.join(map(json.dumps, rows)))
  (tmp_path / 'bytes.gin').write_text(
    'from __gin__ import dynamic_registration\nfrom opd_jax.data import tokenizers\n'
    'TOKENIZER = @tokenizers.ByteTokenizer()\n'
  )

  def run(*more, **bindings):
    words = [f'--gin_file={pytestconfig.rootpath}/experiments/{name}.gin' for name in SHIPPED]
    named = {**BINDINGS, **MORE, **bindings}.items()
    told = [f'--gin_bindings={name} = {value}' for name, value in named]
    status = cli.main(['check', *words, '--gin_file=bytes.gin', *told, *more])
    captured = capfd.readouterr()
    return status, captured.out, captured.err

  return run


def test_a_table_of_eighty_columns_shows_what_was_opened(opd, tmp_path):
  status, out, err = opd('--workdir', 'run')
  assert status == 0, err
  assert max(map(len, out.splitlines())) <= 80
  for words in ('264 tokens', '2 layers x 64', 'judge teacher', '72 of 72 rows read',
                'every row that was read has room', 'evaluation data', '4 problems'):  # fmt: skip
    assert words in out
  assert not (tmp_path / 'run').exists()


def test_all_mistakes_are_told_at_once_and_each_once(opd):
  status, out, err = opd(DATA='"bad.jsonl"', TEACHER='"teeny"', VERIFIER='@texts.json_fields')
  assert status == 2 and 'refused, see mistake 1' in out
  lines = err.splitlines()
  assert lines[0] == 'opd check: 4 mistakes:' and len(lines) == 5
  assert "1. stage train: model: 'teeny' is neither a folder nor a preset" in lines[1]
  assert '2. stage train: data: bad.jsonl, line 71: column problem holds null' in lines[2]
  assert '2 rows are bad, another is bad.jsonl, line 79: column answer holds list' in lines[2]
  assert '3. stage train: task data: its verifier' in lines[3]
  assert '4. evaluation data: task data: its verifier' in lines[4]


def test_a_disk_without_room_is_seen_before_step_0(tmp_path, monkeypatch, pytestconfig):
  monkeypatch.setattr('shutil.disk_usage', lambda path: SimpleNamespace(free=2**30))
  gin = ('models/qwen3_8b', 'data/sums', 'methods/sft')
  files = [f'{pytestconfig.rootpath}/experiments/{name}.gin' for name in gin]
  experiment, _ = build(files, ['STEPS = 1'])
  (mistake,) = [
    finding.mistake
    for finding in inspection.inspect(experiment, workdir=tmp_path / 'run')
    if finding.what == 'disk'
  ]
  assert 'has no room: 305' in mistake and 'checkpoints_kept' in mistake
