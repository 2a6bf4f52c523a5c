"""Every notebook runs from its first cell to its last, which asserts the notebook's own finding."""

import importlib.util
from pathlib import Path

import pytest

pytest.importorskip('nbclient', reason='the notebooks need nbclient: the extra `test` has it')
pytest.importorskip('ipykernel', reason='the notebooks need ipykernel: the extra `test` has it')

import nbformat

FOLDER = Path(__file__).parent.parent / 'notebooks'
NOTEBOOKS = sorted(FOLDER.glob('*.ipynb'))


def execute():
  spec = importlib.util.spec_from_file_location('execute', FOLDER / 'execute.py')
  assert spec is not None and spec.loader is not None
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  return module


@pytest.fixture(autouse=True)
def same_sources(monkeypatch):
  """Kernels import the package that is tested, wherever the tests were started."""
  monkeypatch.setenv('PYTHONPATH', str(FOLDER.parent))


@pytest.mark.filterwarnings('ignore::DeprecationWarning', 'ignore::ResourceWarning')
@pytest.mark.parametrize('path', NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_runs_and_its_finding_holds(path):
  notebook = execute().executed(path)
  assert all(cell.execution_count for cell in notebook.cells if cell.cell_type == 'code')


@pytest.mark.parametrize('path', NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_is_committed_as_it_ran_and_ends_with_its_finding(path):
  cells = [c for c in nbformat.read(path, as_version=4).cells if c.cell_type == 'code']
  assert all(cell.execution_count for cell in cells)
  assert any('image/png' in str(output) for cell in cells for output in cell.outputs)
  assert cells[-1].source.startswith('assert ')


def test_the_notebooks_stay_small():
  assert sum(path.stat().st_size for path in NOTEBOOKS) < 1_500_000
