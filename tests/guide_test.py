"""The ten-minute guide and the loop in Python, followed word by word on folders made for them, at tiny size."""

import json
import re
import shlex
import sys
from fnmatch import fnmatchcase
from pathlib import Path

import docs_test
import metrics_page_test
import pytest

from opd_jax import cli
from opd_jax.data.tokenizers import HubTokenizer

DOCS = docs_test.ROOT / 'docs'
# Steps, rows and tokens of the guide that a test can wait for.
SMALLER = {
  '--steps': '1',
  '--warmup': '1',
  '--prompts': '4',
  '--budget': '24',
  '--max_new_tokens': '4',
}


def smaller(words: list[str]) -> list[str]:
  """A command with fewer steps and rows."""
  pairs = zip(['', *words], words, strict=False)
  return [SMALLER.get(before, word) for before, word in pairs]


def make_folders(here: Path) -> None:
  """The folders and the file of the guide, at tiny size."""
  maker = docs_test.module_of('docs/examples/make_folders.py')
  maker.LAYERS, maker.WIDTHS = 1, {'student': 32, 'teacher': 32}  # one shape: one set of programs
  with pytest.MonkeyPatch.context() as patch:
    patch.chdir(here)
    patch.setattr(sys, 'argv', ['make_folders.py', 'mine', '--problems', '60'])
    maker.main()


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
  """A working directory in which the folders and the file of the guide lie."""
  here = tmp_path_factory.mktemp('guide')
  make_folders(here)
  return here


def test_the_guide_makes_its_folders_by_this_script():
  text = (DOCS / 'ten_minutes.md').read_text()
  assert 'python docs/examples/make_folders.py mine\n' in text


def test_the_guide_leads_to_a_curve_and_to_a_folder_for_transformers(folder, monkeypatch, capfd):
  monkeypatch.chdir(folder)
  commands = docs_test.commands('\n'.join(docs_test.blocks(DOCS / 'ten_minutes.md')))
  names = [words[0] for words in commands]
  assert names == ['distil'] * 3 + ['train', 'report', 'export', 'sample']
  for words in commands:
    status = cli.main(smaller(words))
    assert status == 0, f'opd {shlex.join(words)}\n{capfd.readouterr().err}'
  assert '<title>mine</title>' in (folder / 'runs/mine/report.html').read_text()
  exported = {file.name for file in (folder / 'exported').iterdir()}
  assert {'config.json', 'model.safetensors', 'tokenizer.json'} <= exported
  assert json.loads((folder / 'exported/config.json').read_text())['model_type'] == 'qwen2'
  texts = 'Is 12 + 7 = 19?\n', 'exported', 'runs/begin/student', 'mine/student'
  assert len({(*HubTokenizer(where).encode(texts[0]),) for where in texts[1:]}) == 1
  names = {
    name
    for run in ('teacher', 'mine')
    for line in (folder / 'runs' / run / 'metrics.jsonl').read_text().splitlines()
    for name in json.loads(line)
  }
  entries = metrics_page_test.entries()
  assert not [name for name in names if not any(fnmatchcase(name, each) for each in entries)]
  assert {'loss', 'log_ratio', 'eval/data/reverse_kl', 'time/sample'} <= names


def test_the_loop_of_the_page_runs_and_saves_a_model(folder, monkeypatch, capfd):
  monkeypatch.chdir(folder)
  text, plain = docs_test.blocks(DOCS / 'python.md', 'python')
  loop = text[text.index('training = api.begin') :].strip().splitlines()
  assert len(loop) <= 10
  text = re.sub(r'steps=\d+', 'steps=2', re.sub(r'prompts=\d+', 'prompts=4', text))
  exec(compile(text.replace('budget=40', 'budget=8'), 'python.md', 'exec'), {})
  assert [line.split()[0] for line in capfd.readouterr().out.splitlines() if line[0] in '01'] == [
    '0',
    '1',
  ]
  assert cli.main(['convert', 'mine/learnt', 'learnt_exported']) == 0
  assert (folder / 'learnt_exported/tokenizer.json').is_file()
  plain = plain.replace('Qwen/Qwen3-0.6B', 'mine/student').replace('budget=1024', 'budget=4')
  names: dict = {}
  exec(compile(plain, 'python.md', 'exec'), names)
  assert names['rollout'].mask.shape[0] == 2
  assert names['logits'](names['params'], names['prompts'].tokens).shape[0] == 2
