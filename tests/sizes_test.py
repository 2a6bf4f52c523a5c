"""Files, functions and methods stay small, and whatever is public has a user."""

import ast
import re
from pathlib import Path

import pytest

import opd_jax

ROOT = Path(opd_jax.__file__).parent
FILES = sorted(ROOT.rglob('*.py'))
FILE, FUNCTION, METHOD = 300, 40, 80
# What gin files of users bind: readers of their data, and shapes of published models.
BINDABLE = ('data/problems.py', 'data/sources.py', 'data/published.py', 'models/presets.py')


def name_of(path: Path) -> str:
  return str(path.relative_to(ROOT))


def body_lines(function: ast.FunctionDef) -> int:
  """Lines behind the signature and the docstring."""
  body = function.body[1:] if ast.get_docstring(function) else function.body
  return (function.end_lineno or 0) - body[0].lineno + 1 if body else 0


def too_large(path: Path) -> list[str]:
  text = path.read_text()
  large = [f'{len(text.splitlines())} lines'] if len(text.splitlines()) > FILE else []
  is_method = path.parent.name == 'methods'
  for node in ast.walk(ast.parse(text)):
    if isinstance(node, ast.FunctionDef):
      whole = (node.end_lineno or 0) - node.lineno + 1
      if (is_method and whole > METHOD) or (not is_method and body_lines(node) > FUNCTION):
        large.append(f'{node.name}: {whole if is_method else body_lines(node)} lines')
  return large


@pytest.mark.parametrize('path', FILES, ids=name_of)
def test_files_and_functions_stay_small(path):
  assert not too_large(path)


def test_the_budget_catches_what_it_is_for(tmp_path):
  (tmp_path / 'long.py').write_text('def f():\n' + '  x = 1\n' * 41)
  assert too_large(tmp_path / 'long.py') == ['f: 41 lines']
  (tmp_path / 'file.py').write_text('x = 1\n' * 301)
  assert too_large(tmp_path / 'file.py') == ['301 lines']


def uses(name: str, path: Path) -> bool:
  """Whether the package or a gin file mentions a public name anywhere but where it is defined."""
  for other in [*FILES, *(ROOT.parent / 'experiments').rglob('*.gin')]:
    text = other.read_text()
    if other != path and re.search(rf'\b{name}\b', text):
      return True
  nodes = ast.walk(ast.parse(path.read_text()))
  return any(
    (isinstance(node, ast.Name) and node.id == name)
    or (isinstance(node, ast.Attribute) and node.attr == name)
    for node in nodes
  )


def test_whatever_is_public_has_a_user():
  lonely = [
    f'{name_of(path)}: {node.name}'
    for path in FILES
    if name_of(path) not in BINDABLE
    for node in ast.parse(path.read_text()).body
    if isinstance(node, ast.FunctionDef | ast.ClassDef)
    and not node.name.startswith('_')
    and not uses(node.name, path)
  ]
  assert not lonely
