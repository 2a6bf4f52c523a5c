"""A file imports only from lower floors: the table of the design, checked by reading the imports."""

import ast
from pathlib import Path

import pytest

import opd_jax

ROOT = Path(opd_jax.__file__).parent
FLOORS = {
  'types': 0,
  'dealing': 0,
  'sharding': 0,
  'meshes': 0,
  'host': 0,
  'static': 0,
  'kinds': 0,
  'ramps': 0,
  'processes': 0,
  'programs': 0,
  'units': 0,
  'storage': 2,
  'losses': 1,
  'models': 1,
  'data': 1,
  'inference': 2,
  'forks': 3,
  'probes': 3,
  'rollouts': 3,
  'judges': 3,
  'serving': 3,
  'responses': 3,
  'method': 3,
  'method_reads': 3,
  'claims': 2,
  'methods': 4,
  'evaluation': 4,
  'training': 5,
  'certify': 5,
  'planning': 6,
  'studies': 6,
  'report': 6,
  'configuration': 6,
  'gin_files': 6,
  'trust': 6,
  'reference': 6,
  'api': 6,
  'commands': 6,
  'cli': 7,
  'worker': 7,
}
# Rooms of one floor that may not look at each other, and packages only some rooms may use.
APART = {
  ('models', 'losses'),
  ('losses', 'models'),
  ('data', 'models'),
  ('data', 'losses'),
  ('models', 'data'),
  ('losses', 'data'),
}
OWNERS = {
  'gin': {'configuration'},
  'argparse': {'cli', 'commands'},
  'absl': set(),
  'torch': set(),
  'chex': {'certify'},
}
WITHOUT_JAX = {'data'}
FILES = sorted(ROOT.rglob('*.py'))


def room(path: Path) -> str:
  return path.relative_to(ROOT).parts[0].removesuffix('.py')


def imports(path: Path) -> list[str]:
  """Dotted names of all imports, also of those inside functions."""
  found = []
  for node in ast.walk(ast.parse(path.read_text())):
    if isinstance(node, ast.Import):
      found += [alias.name for alias in node.names]
    elif isinstance(node, ast.ImportFrom):
      assert node.level == 0, f'{path}: relative import'
      found += [f'{node.module}.{alias.name}' for alias in node.names]
  return found


def violations(path: Path, names: list[str]) -> list[str]:
  here = room(path)
  bad = []
  for name in names:
    top, *rest = name.split('.')
    if top in OWNERS and here not in OWNERS[top]:
      bad.append(name)
    if top in ('jax', 'flax') and here in WITHOUT_JAX:
      bad.append(name)
    if top == 'opd_jax' and rest and rest[0] in FLOORS:
      there = rest[0]
      upwards = FLOORS[there] > FLOORS[here]
      cousins = there == here == 'methods' and path.stem != '__init__'
      if upwards or cousins or (here, there) in APART:
        bad.append(name)
  return bad


@pytest.mark.parametrize(
  'path',
  [f for f in FILES if f.name != '__init__.py' or f.parent != ROOT],
  ids=lambda f: str(f.relative_to(ROOT)),
)
def test_imports_go_downwards_only(path):
  assert room(path) in FLOORS, f'{path} stands on no floor; give it one in the table'
  assert not violations(path, imports(path))


def test_the_table_catches_what_it_is_for():
  model, method = ROOT / 'models' / 'x.py', ROOT / 'methods' / 'x.py'
  assert violations(model, ['opd_jax.losses.terms'])
  assert violations(model, ['opd_jax.training.loop'])
  assert violations(model, ['gin'])
  assert violations(method, ['opd_jax.methods.opd'])
  assert violations(ROOT / 'data' / 'x.py', ['jax.numpy'])
  assert not violations(method, ['opd_jax.losses.terms', 'jax'])


def test_no_room_is_called_utils():
  assert not {f.stem for f in FILES} & {'utils', 'helpers', 'common', 'misc'}
