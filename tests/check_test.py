"""`opd check`: everything that an experiment names is opened, and all mistakes are told at once."""

import dataclasses
import json
from types import SimpleNamespace

import pytest
import tiny_runs as runs

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
  assert lines[0] == 'opd check: 3 mistakes:' and len(lines) == 4
  assert "1. stage train: model: 'teeny' is neither a folder nor a preset" in lines[1]
  assert '2. stage train: data: bad.jsonl, line 71: column problem holds null' in lines[2]
  assert '2 rows are bad, another is bad.jsonl, line 79: column answer holds list' in lines[2]
  assert '3. stage train: task data: its verifier' in lines[3]


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


def test_whoever_waits_is_told_how_many_rows_were_read(tmp_path, monkeypatch, pytestconfig):
  rows = [{'problem': f'{n}+1=', 'answer': n + 1} for n in range(800)]
  (tmp_path / 'rows.jsonl').write_text('\n'.join(map(json.dumps, rows)))
  monkeypatch.chdir(tmp_path)
  files = [f'{pytestconfig.rootpath}/experiments/{name}.gin' for name in SHIPPED]
  plain = ['import opd_jax.data.tokenizers', 'TOKENIZER = @opd_jax.data.tokenizers.ByteTokenizer()']
  settings = [f'{name} = {value}' for name, value in BINDINGS.items()]
  told = []
  inspection.inspect(build(files, [*plain, *settings])[0], status=told.append)
  assert told == [f'reading rows of train: {count} of 720' for count in (256, 512)]


RECIPES = {
  'nothing of any': (
    'ptd_po',
    "contexts.column.name = 'empty'",
    'shows nothing of any of the 64 rows',
  ),
  'one response': ('sdpo', 'SAMPLES = 1', 'shows other responses to a question, and each has one'),
  'read too late': (
    'cgtr',
    "judges.gated.by = @gates.Improved()\ngates.Improved.metric = 'eval/sums/avg@1'\n"
    'evaluator.Evaluation.every = 0',
    'is read before step 0 and after the stage only, so it never opens',
  ),
}


@pytest.mark.parametrize('recipe, binding, message', RECIPES.values(), ids=RECIPES)
def test_a_teacher_that_would_learn_nothing_is_refused(
  recipe, binding, message, tmp_path, monkeypatch, pytestconfig
):
  monkeypatch.chdir(pytestconfig.rootpath)
  file = pytestconfig.rootpath / f'experiments/recipes/{recipe}.gin'
  weights = runs.teacher_folder(tmp_path)
  experiment, _ = build([str(file)], [f'WEIGHTS = "{weights}"', binding])
  stage = experiment.stages[0]
  read = stage.task.read
  blank = lambda raw: (problem := read(raw)) and problem._replace(extra={'empty': ' '})
  if recipe == 'ptd_po':
    task = dataclasses.replace(stage.task, read=blank)
    stage = dataclasses.replace(stage, task=task, prompts=64)
    experiment = dataclasses.replace(experiment, stages=(stage,))
  found = [each.mistake for each in inspection.inspect(experiment, every_row=False) if each.mistake]
  assert any(message in mistake for mistake in found), found
