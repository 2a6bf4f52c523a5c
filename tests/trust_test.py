"""What gin files may import and call: anything else is refused before it runs."""

import sys

import pytest

from opd_jax.configuration import build
from opd_jax.trust import MODULES, Trust

FILES = [f'experiments/{name}.gin' for name in ('models/small', 'data/sums', 'methods/sft')]
HEADER = 'from __gin__ import dynamic_registration\n'
METHOD = """\
from pathlib import Path
from opd_jax.methods import sft

Path('ran').write_text('')


def mine():
  return sft.sft()
"""


@pytest.fixture
def steps(tmp_path, monkeypatch, pytestconfig):
  """Builds an experiment with one more file, whose path and text are given, in a folder of the user's own."""
  monkeypatch.chdir(tmp_path)
  monkeypatch.setattr(sys, 'path', [entry for entry in sys.path if entry])

  def build_it(name, text, trust=None):
    file = tmp_path / name
    file.parent.mkdir(exist_ok=True)
    file.write_text(HEADER + text)
    shipped = [str(pytestconfig.rootpath / each) for each in FILES]
    return build([*shipped, str(file)], [], trust)[0].stages[0].steps

  return build_it


SYSTEM = 'STEPS = @{0}.system()\n{0}.system.command = "touch ran"\n'


@pytest.mark.parametrize(
  'text, words',
  [
    ('import os\n' + SYSTEM.format('os'), 'line 2: os is not imported'),
    ('\nfrom  os import path\n', 'line 3: os.path is not imported'),
    ('STEPS = 1\n  \nimport \\\n  subprocess\n', 'line 4: subprocess is not imported'),
    ('from opd_jax import worker\n' + SYSTEM.format('worker.os'), 'opd_jax.worker is no part'),
    (
      'from opd_jax.evaluation.graders import worker\n',
      'opd_jax.evaluation.graders.worker is no part',
    ),
    (
      'from opd_jax.data import sources\nSTEPS = @sources.json.loads()\n',
      'sources.json.loads is json.loads',
    ),
    (
      'from opd_jax.data import sources\nsources.Path.touch.self = "ran"\n',
      'sources.Path.touch is pathlib',
    ),
    ("  include 'experiments/base.gin'\n", 'an include stands on a line of its own'),
    ("STEPS = 1; include 'evil.gin'\n", 'Expected newline'),
  ],
)
def test_a_gin_file_runs_nothing_but_experiments(steps, tmp_path, text, words):
  with pytest.raises(ValueError) as told:
    steps('evil.gin', text)
  assert words in str(told.value) and str(tmp_path / 'evil.gin') in str(told.value)
  assert not (tmp_path / 'ran').exists()


def test_a_module_beside_its_gin_file_is_imported_and_one_elsewhere_must_be_named(steps, tmp_path):
  text = 'import {0}\nMETHOD = @{0}.mine()\nSTEPS = 3\n'
  (tmp_path / 'own').mkdir()
  (tmp_path / 'own/beside_gin.py').write_text(METHOD)
  assert steps('own/a.gin', text.format('beside_gin')) == 3
  (tmp_path / 'elsewhere.py').write_text(METHOD)
  (tmp_path / 'ran').unlink()
  with pytest.raises(ValueError, match=r'--module elsewhere; .* --trust_gin'):
    steps('own/b.gin', text.format('elsewhere'))
  assert not (tmp_path / 'ran').exists()
  assert steps('own/b.gin', text.format('elsewhere'), Trust(['elsewhere'])) == 3
  with pytest.raises(ValueError, match='--module nowhere cannot be imported'):
    Trust(['nowhere'])


def test_a_file_beside_that_is_named_like_another_module_does_not_let_that_one_in(steps, tmp_path):
  (tmp_path / 'json.py').write_text('')
  with pytest.raises(ValueError, match='json is not imported'):
    steps('a.gin', 'import json\nSTEPS = @json.loads()\njson.loads.s = "3"\n')


def test_whoever_trusts_a_file_may_call_everything(steps):
  text = 'import json\nSTEPS = @json.loads()\njson.loads.s = "3"\n'
  assert steps('a.gin', text, Trust(everything=True)) == steps('a.gin', text, Trust(['json'])) == 3


def test_every_module_that_gin_may_call_is_there(pytestconfig):
  for name in MODULES:
    path = pytestconfig.rootpath / 'opd_jax' / name.replace('.', '/')
    assert path.is_dir() or path.with_suffix('.py').is_file()
