"""Every metric that a run can write has an entry in docs/metrics.md, and every entry is a metric."""

import ast
import re
from collections.abc import Iterator
from fnmatch import fnmatchcase
from pathlib import Path

import opd_jax
from opd_jax.evaluation.geometry import Change

ROOT = Path(opd_jax.__file__).parent
PAGE = (ROOT.parent / 'docs' / 'metrics.md').read_text()
# What makes metrics: the file, its functions, and what is put in front of their names.
MADE = (
  (
    'training/metrics.py',
    ('of_rollout', 'of_routes', 'of_evidence', '_of_chunks', '_predictive', 'of_tally'),
    '',
  ),
  ('training/optimiser_step.py', ('apply',), ''),
  ('training/verbs.py', ('updates',), ''),
  ('training/loop.py', ('_evaluated',), ''),
  ('training/step.py', ('one_step',), ''),
  ('training/clock.py', ('idle',), ''),
  ('training/probing.py', ('probed',), ''),
  ('training/following.py', ('_shocks',), ''),
  ('training/moving.py', ('shown',), ''),
  ('training/pace.py', ('__call__',), ''),
  ('training/gradient.py', ('_tally',), ''),
  ('losses/tile.py', ('_diagnostics',), 'teacher/'),
  ('evaluation/summary.py', ('by_problem', 'shares'), 'eval/*/'),
  ('evaluation/evaluator.py', ('_metrics', 'reverse_kl', 'drafting'), ''),
)
COUNTS = {'known', 'drawn', 'curve/tokens', 'curve/known'}  # of a tally: what others are divided by


def names_in(path: Path, functions: tuple[str, ...]) -> Iterator[str]:
  """Keys of dicts that these functions make or fill; what is filled in is a star."""
  nodes = [
    node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.FunctionDef)
  ]
  assert {node.name for node in nodes} >= {*functions}, f'{path} has lost one of {functions}'
  for function in (node for node in nodes if node.name in functions):
    for node in ast.walk(function):
      keys = node.keys if isinstance(node, ast.Dict) else []
      keys = [node.key] if isinstance(node, ast.DictComp) else keys
      if isinstance(node, ast.Subscript) and isinstance(node.ctx, ast.Store):
        keys = [node.slice]
      yield from filter(None, map(pattern_of, keys))


def pattern_of(key: ast.expr | None) -> str | None:
  if isinstance(key, ast.Constant) and isinstance(key.value, str):
    return key.value
  if isinstance(key, ast.JoinedStr):
    return ''.join(part.value if isinstance(part, ast.Constant) else '*' for part in key.values)
  return None


def written() -> set[str]:
  """Patterns of all metrics that the code makes."""
  found = {
    prefix + name for file, functions, prefix in MADE for name in names_in(ROOT / file, functions)
  }
  return (found | {f'geometry/{name}' for name in Change._fields[1:]}) - COUNTS


def entries() -> set[str]:
  """Names that the page explains, with a star for what is filled in."""
  cells = re.findall(r'^\| (`[^|]*`) \|', PAGE, re.MULTILINE)
  return {re.sub('<.*?>', '*', name) for cell in cells for name in re.findall('`([^`]+)`', cell)}


def test_every_metric_has_an_entry():
  known = entries()
  missing = [name for name in written() if not any(fnmatchcase(entry, name) for entry in known)]
  assert not missing, f'docs/metrics.md says nothing of {sorted(missing)}'


def test_every_entry_is_a_metric():
  made = written()
  stale = [name for name in entries() if not any(fnmatchcase(name, each) for each in made)]
  assert not stale, f'docs/metrics.md explains what nobody writes: {sorted(stale)}'


def test_a_metric_without_an_entry_is_seen(tmp_path):
  source = "def f(x):\n  row = {'new': 1, **x}\n  row['newer'] = 2\n  return {f'a/{x}': 3}\n"
  (tmp_path / 'made.py').write_text(source)
  assert {*names_in(tmp_path / 'made.py', ('f',))} == {'new', 'newer', 'a/*'}
