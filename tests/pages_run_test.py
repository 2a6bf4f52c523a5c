"""Every command of every page is run, in reading order and in one folder, at tiny size. The ten-minute guide has a test
of its own; what cannot be run here is named, with what runs it instead."""

import json
import shlex

import docs_test
import guide_test
import pytest

from opd_jax import cli

HUB, STUDIES = 'a model of the hub', 'tests/studies, with a study of seconds'
# Words of a command, and who runs it.
ELSEWHERE = {
  'demo': '`make demo`',
  'serve': 'served_run_test',
  'http://127.0.0.1:8000': 'served_run_test',
  'my_method': 'new_method_test',
  'certify --all': '`make certify`',
  'gap --fit': 'gap_test',
  'study experiments/studies/science.py': STUDIES,
  'Qwen/Qwen3-0.6B': HUB,
  '--distributed': 'launch_test and multihost_test',
  '--coordinator': 'multihost_test',
}
# What no command makes.
MADE = {
  'DIR': 'mine/student',
  'problems.jsonl': 'mine/problems.jsonl',
  'models/qwen3-0.6b': 'mine/student',
  'models/qwen3-8b': 'mine/teacher',
  'runs/warm/student': 'runs/sft/student',
  'runs/reads/student': 'runs/sft/student',
  'runs/opd': 'runs/mine',
  'runs/opd/student': 'runs/aopd/student',
}
SMALLER = {'--samples': '2', '--profile': '2:2'}
STAGE = ('STEPS = 2', 'PROMPTS = 2', 'evaluator.Evaluation.problems = 2',
         'presets.tiny.width = 32', 'presets.tiny.num_layers = 1')  # fmt: skip
DISTIL = ('--steps', '1', '--prompts', '4', '--budget', '24')
ADDED = {
  'train': STAGE,
  'gap': STAGE,
  'evaluate': ('evaluator.Evaluation.samples = 2', 'evaluator.Evaluation.budget = 4',
               'evaluator.Evaluation.problems = 1', 'PROBLEMS = "asked.jsonl"'),
}  # fmt: skip
COMMANDS = list(
  dict.fromkeys(
    shlex.join(words)
    for page in docs_test.PAGES
    if page.stem != 'ten_minutes'
    for words in docs_test.commands('\n'.join(docs_test.blocks(page)))
  )
)
RUN = [text for text in COMMANDS if not any(words in text for words in ELSEWHERE)]


def smaller(text: str) -> list[str]:
  """The words of a command, with folders that are there, few steps and few rows."""
  words = [MADE.get(word, word) for word in shlex.split(text)]
  for one, other in MADE.items():
    words = [word.replace(f'"{one}"', f'"{other}"') for word in words]
  words = [SMALLER.get(before, word) for before, word in zip(['', *words], words, strict=False)]
  words += DISTIL if words[0] == 'distil' else ()
  for binding in ADDED.get(words[0], ()) if '--gin_file' in words else ():
    words += ['--gin_bindings', binding]
  if 'recipes/' in text and words[0] == 'train' and 'sdft' not in text:
    words += ['--gin_bindings', 'WARM = 1']
  return words


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
  """A working directory like the root of the repository, with what a user brings along."""
  here = tmp_path_factory.mktemp('pages')
  guide_test.make_folders(here)
  (here / 'experiments').symlink_to(docs_test.ROOT / 'experiments')
  (here / 'questions.jsonl').write_text('{"text": "1+2="}\n{"text": "3+4="}\n')
  (here / 'written.jsonl').write_text('{"prompt_tokens": [1, 2], "tokens": [3, 4]}\n')
  (here / 'asked.jsonl').write_text(json.dumps({'problem': '1 + 1?', 'answer': '2'}) + '\n')
  return here


@pytest.mark.parametrize('text', RUN)
def test_a_command_runs(text, folder, monkeypatch, capfd):
  monkeypatch.chdir(folder)
  status = cli.main(smaller(text))
  assert status == 0, f'opd {shlex.join(smaller(text))}\n{capfd.readouterr().err}'


def test_what_is_not_run_is_named():
  assert len(RUN) > 30
  assert not [words for words in ELSEWHERE if not any(words in text for text in COMMANDS)]
