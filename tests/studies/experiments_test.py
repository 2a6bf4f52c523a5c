"""Every shipped study is one, and every gin file and binding of its cells is read."""

import ast
from pathlib import Path

import pytest

from opd_jax import configuration
from opd_jax.studies import folder
from opd_jax.studies.ledger import Ledger
from opd_jax.studies.study import read_study

ROOT = Path(__file__).parent.parent.parent
FILES = sorted((ROOT / 'experiments' / 'studies').rglob('*.py'))
STUDIES = pytest.mark.parametrize('file', FILES, ids=lambda file: file.stem)


@STUDIES
def test_every_cell_builds_an_experiment_without_a_dead_binding(file, tmp_path):
  study = read_study(file)
  folder.claim(study, file, tmp_path)
  for cell in study.cells:
    bindings = list(cell.bindings)
    for other in cell.after:
      bindings = [text.replace(f'{{{other}}}', 'tiny') for text in bindings]
    bindings += [f'RATE = {rate!r}' for rate in cell.rates[:1]]
    files = [str(path) for path in folder.gin_paths(cell.files, file)]
    experiment, _ = configuration.build(files, [*bindings, 'experiment.Experiment.seed = 1'])
    assert experiment.seed == 1 and experiment.stages


def test_the_study_of_the_page_is_one(tmp_path, monkeypatch):
  page = (ROOT / 'docs' / 'studies.md').read_text()
  (tmp_path / 'x.py').write_text(page.split('```python\n')[1].split('```')[0])
  monkeypatch.chdir(ROOT)
  study = read_study(tmp_path / 'x.py')
  folder.claim(study, tmp_path / 'x.py', tmp_path)
  assert Ledger(study, tmp_path).total() == {'teacher': 1, 'weak': 7, 'opd': 11}


@STUDIES
def test_a_study_says_its_command_and_its_cost(file, tmp_path):
  text = ast.get_docstring(ast.parse(file.read_text()))
  total = sum(Ledger(read_study(file), tmp_path).total().values())
  assert f'\nCommand  opd study {file.relative_to(ROOT)} --workdir ' in text
  assert f'\nCost     {total} runs' in text
