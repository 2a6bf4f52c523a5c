"""Writes what the code already says: docs/gin_reference.md, and the table of methods in README.md.

python docs/generate.py            writes both
python docs/generate.py --check    writes nothing; exit status 1 where one is stale
"""

import ast
import functools
import importlib
import inspect
import re
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

from opd_jax.claims import Claim, Converges, Unbiased, to_teacher
from opd_jax.method import Method
from opd_jax.method_reads import judges_read
from opd_jax.methods import Entry, discover
from opd_jax.rollouts import RolloutMix
from opd_jax.types import ScoreRequest

ROOT = Path(__file__).parent.parent
BEGIN, END = '<!-- methods: written by `make docs` -->', '<!-- methods end -->'
HEAD = """\
# gin reference

Written by `make docs` from signatures and docstrings: do not edit. [gin.md](gin.md) says how files and bindings work.
A binding is `module.name.argument = value`; `from opd_jax… import module` must stand in a file. An empty default: it
must be bound.

`judges.frozen` and `judges.itself` take the options of `Judge` too; a preset takes the fields of `ModelConfig`.
"""
JUDGES = (
  'frozen',
  'itself',
  'never',
  'ema',
  'every',
  'live',
  'gated',
  'routed',
  'combined',
  'averaged',
)
# title, module, names that are shown (None: all public ones that are no bare base of others)
SECTIONS: tuple[tuple[str, str, tuple[str, ...] | None], ...] = (
  ('Experiments and stages', 'training.experiment', ('Experiment', 'Stage')),
  ('Adapters', 'models.lora', ('Lora',)),
  ('Records of rollouts', 'training.rollout_records', ('RolloutRecords',)),
  ('Alarms', 'training.alarms', ('Bounds',)),
  ('Evaluations', 'evaluation.evaluator', ('Evaluation',)),
  ('Optimisers', 'training.optimisers', ('adamw', 'sgd')),
  ('Who writes', 'rollouts', ('student', 'teacher', 'dataset', 'mixture', 'RolloutMix')),
  ('Judges', 'judges', JUDGES),
  ('Judges that steer', 'judges.steering', ('steered', 'trust_region', 'success', 'failure')),
  ('Gates of judges', 'judges.gates', ('RewardRose', 'Improved')),
  ('Rules that end a stage', 'training.stopping', ('StopWhen',)),
  ('Options of judges', 'judges.spec', ('Judge',)),
  ('Contexts of judges', 'judges.contexts', None),
  ('Numbers that move', 'ramps', ('Ramp', 'Piecewise', 'Stepped', 'Latest')),
  ('Divergences', 'losses.divergences', None),
  ('Supports', 'losses.supports', None),
  ('Rest rules', 'losses.rest_rules', None),
  ('Terms', 'losses.terms', None),
  ('Sampling', 'inference.sampler', ('Sampling',)),
  ('What is recorded of a rollout', 'inference.decode_programs', ('Recording',)),
  ('Decoding', 'inference.decoding', None),
  ('Decoding beside a second model', 'inference.guided', None),
  ('Layouts', 'sharding', ('mesh_layout', 'Layout')),
  ('Tiny world: sums', 'data.tiny_worlds.sums', ('sums', 'tokenizer')),
  ('Tiny world: calls', 'data.tiny_worlds.calls', ('calls', 'tokenizer')),
  ('Tasks and readers', 'data.problems', ('Task', 'from_columns', 'from_messages')),
  ('Readers of published data sets', 'data.published', None),
  ('Sources', 'data.sources', ('json_lines', 'parquet', 'hub')),
  ('Mixtures of tasks', 'data.mixture', ('mixture',)),
  ('Templates', 'data.templates', ('Template',)),
  ('Tokenizers', 'data.tokenizers', ('CharacterTokenizer', 'ByteTokenizer', 'HubTokenizer')),
  ('Tokenizers that are read when a run begins', 'storage.hub_tokenizer', ('Published',)),
)
HIDDEN = {'Compared', 'View', 'WeightedTerm', 'OutsideMass', 'named_parts', 'draw', 'value_of'}
HIDDEN |= {'all_between', 'require'}  # what rules of other files are made with


# --- signatures, as the source has them: the same under every version of Python ----------------------


@functools.cache
def source_of(module: ModuleType) -> dict[str, ast.AST]:
  return {node.name: node for node in ast.parse(inspect.getsource(module)).body
          if isinstance(node, ast.FunctionDef | ast.ClassDef)}  # fmt: skip


def arguments(module: ModuleType, name: str) -> list[tuple[str, str, str]]:
  """Name, type and default of every argument."""
  node: Any = source_of(module)[name]
  if isinstance(node, ast.ClassDef):
    makers = [part for part in node.body if getattr(part, 'name', '') == '__init__']
    if not makers:
      return [(part.target.id, ast.unparse(part.annotation), default(module, part.value))
              for part in node.body if isinstance(part, ast.AnnAssign)
              and 'ClassVar' not in ast.unparse(part.annotation)]  # fmt: skip
    node = makers[0]
  given, keyword = node.args, node.args.kwonlyargs
  positional = [each for each in given.args if each.arg != 'self']
  missing = [None] * (len(positional) - len(given.defaults))
  values = [*missing, *given.defaults, *given.kw_defaults]
  return [
    (each.arg, ast.unparse(each.annotation) if each.annotation else '', default(module, value))
    for each, value in zip([*positional, *keyword], values, strict=True)
  ]


def default(module: ModuleType, node: Any) -> str:
  if node is None:
    return ''
  if isinstance(node, ast.Call) and (factory := {k.arg: k.value for k in node.keywords}).keys() == {
    'default_factory'
  }:
    return f'{ast.unparse(factory["default_factory"])}()'
  shown = repr(getattr(module, node.id)) if isinstance(node, ast.Name) else ast.unparse(node)
  return shown if len(shown) < 60 else ast.unparse(node)


def described(doc: str) -> tuple[str, dict[str, str]]:
  """The text before `Args:`, and what each argument means."""
  text, _, listed = doc.partition('\nArgs:\n')
  meanings: dict[str, str] = {}
  names: list[str] = []
  for line in listed.splitlines():
    if match := re.match(r'  (\w[\w, ]*): (.*)', line):
      names = match[1].split(', ')
      meanings |= dict.fromkeys(names, match[2])
    elif line.startswith('    ') and names:
      meanings |= {name: f'{meanings[name]} {line.strip()}' for name in names}
    else:
      names = []
  return text.split('\n>>>')[0].strip(), meanings


# --- the reference ----------------------------------------------------------------------------------


def item(module: ModuleType, name: str, prefix: str) -> Iterator[str]:
  """One thing that can be bound."""
  made = getattr(module, name)
  module = importlib.import_module(made.__module__)
  text, meanings = described(inspect.cleandoc(made.__doc__ or ''))
  yield f'### `{prefix}.{name}`\n'
  yield fenced(text) + '\n'
  listed = [each for each in arguments(module, name) if each[0]]
  if listed:
    yield '| argument | type | default | meaning |\n|---|---|---|---|'
    for argument, kind, value in listed:
      cells = (f'`{argument}`', code(kind), code(value), meanings.get(argument, ''))
      yield '| ' + ' | '.join(cell.replace('|', '\\|') for cell in cells) + ' |'
    yield ''


def code(text: str) -> str:
  return f'`{text}`' if text else ''


def fenced(text: str) -> str:
  """Indented formulas become code; the rest stays prose."""
  parts = []
  for part in text.split('\n\n'):
    formula = part.startswith('    ')
    parts.append(f'```\n{inspect.cleandoc(part)}\n```' if formula else part)
  return '\n\n'.join(parts)


def names_of(module: ModuleType, chosen: tuple[str, ...] | None) -> list[str]:
  if chosen is not None:
    return list(chosen)
  nodes = [name for name in source_of(module) if not name.startswith('_') and name not in HIDDEN]
  own = [getattr(module, name) for name in nodes]
  bases = {base for each in own if inspect.isclass(each) for base in each.__bases__}
  return [name for name in nodes if getattr(module, name) not in bases]


def method_section(entry: Entry) -> Iterator[str]:
  """A method, the records of its file, and its variants."""
  module = importlib.import_module(entry.make.__module__)
  yield from item(module, entry.name, entry.name)
  if entry.variants:
    listed = '; '.join(
      f'*{name}* ({", ".join(f"`{key} = {value!r}`" for key, value in settings.items())})'
      for name, settings in entry.variants.items()
    )
    yield f'Variants: {listed}.\n'
  for name in names_of(module, None):
    if name != entry.name and name not in HIDDEN and inspect.isclass(getattr(module, name)):
      yield from item(module, name, entry.name)


def preset_section() -> Iterator[str]:
  from opd_jax.models import config, presets

  yield 'Each takes the fields of `ModelConfig` as arguments: `presets.tiny.width = 128`.\n'
  yield '| preset | layers | width | heads | key-value heads | vocabulary |\n|---|---|---|---|---|---|'
  for name, make in presets.every().items():
    model = make()
    numbers = (model.num_layers, model.width, model.num_heads, model.num_kv_heads)
    yield f'| `presets.{name}` | {" | ".join(map(str, (*numbers, model.vocab_size)))} |'
  yield ''
  for name in ('ModelConfig', 'Experts', 'RopeScaling'):
    yield from item(config, name, 'config')


def reference() -> str:
  lines = [HEAD, '## Methods\n']
  for entry in discover():
    lines += method_section(entry)
  for title, path, chosen in SECTIONS:
    module = importlib.import_module(f'opd_jax.{path}')
    prefix = path.rpartition('.')[2]
    lines += [f'## {title}\n', f'`from opd_jax{gin_import(path)}`\n']
    for name in names_of(module, chosen):
      lines += item(module, name, prefix)
  lines += ['## Presets\n', '`from opd_jax.models import presets`\n', *preset_section()]
  return '\n'.join(line.rstrip(' ') for line in lines).rstrip() + '\n'


def gin_import(path: str) -> str:
  folder, _, name = path.rpartition('.')
  return f'{"." + folder if folder else ""} import {name}'


# --- the table of methods ---------------------------------------------------------------------------


def writers(mix: RolloutMix) -> str:
  first = mix.deal(1000).mean(axis=1).round(3).tolist()
  parts = dict(zip(('student', 'teacher', 'data set'), first, strict=True))
  if 1.0 in parts.values():
    return next(name for name, part in parts.items() if part == 1.0)
  return ', '.join(f'{part:.0%} {name}' for name, part in parts.items() if part)


def told(request: ScoreRequest) -> str:
  """What a request asks for, in words."""
  asked = {
    'log-probs': True,
    'entropy': request.entropy,
    f'top {request.top_k}': request.top_k,
    f"at the student's top {request.at_student_top_k}": request.at_student_top_k,
    'whole distribution': request.hidden,
    'inner layers': request.layers,
  }
  return ', '.join(name for name, wanted in asked.items() if wanted)


def judges_of(method: Method) -> str:
  names = sorted(judges_read(method) - {'student'}, key=lambda name: (name != 'teacher', name))
  return '; '.join(f'{name}: {told(method.needs.judges[name])}' for name in names) or 'nothing'


def claim_of(claim: Claim) -> str:
  own = getattr(claim, 'optimum', to_teacher) is not to_teacher
  if isinstance(claim, Unbiased):
    name = claim.divergence.name.replace('_', ' ').replace(' kl', ' KL')
    return f'unbiased for {name}' + (', to an optimum of its own' if own else '')
  if isinstance(claim, Converges):
    return f'converges to {"an optimum of its own" if own else "the teacher"}'
  return f'none: {claim.why}'


def linked(paper: str) -> str:
  return re.sub(r'arXiv:(\d+\.\d+)', r'[arXiv:\1](https://arxiv.org/abs/\1)', paper)


def method_table() -> str:
  rows = ['| method | what it does | paper | who writes | the judges must tell | claim |',
          '|---|---|---|---|---|---|']  # fmt: skip
  for entry in discover():
    method = entry.make()
    cells = (f'[{entry.name}](opd_jax/methods/{entry.name}.py)', entry.summary, linked(entry.paper),
             writers(method.rollout), judges_of(method), claim_of(method.claim))  # fmt: skip
    rows.append('| ' + ' | '.join(cell.replace('|', '\\|') for cell in cells) + ' |')
  return '\n'.join(rows)


def with_table(readme: str) -> str:
  """README.md with the table as it should be."""
  front, begin, rest = readme.partition(BEGIN)
  _, end, back = rest.partition(END)
  if not (begin and end):
    raise ValueError(f'README.md: the lines {BEGIN!r} and {END!r} are not there.')
  return f'{front}{BEGIN}\n{method_table()}\n{END}{back}'


def pages() -> Mapping[Path, str]:
  """What each generated file should hold."""
  readme = ROOT / 'README.md'
  return {ROOT / 'docs/gin_reference.md': reference(), readme: with_table(readme.read_text())}


def stale(wanted: Mapping[Path, str]) -> list[Path]:
  return [path for path, text in wanted.items() if not path.is_file() or path.read_text() != text]


def main(arguments: list[str], say: Callable[[str], None] = print) -> int:
  wanted = pages()
  for path in (changed := stale(wanted)):
    if '--check' not in arguments:
      path.write_text(wanted[path])
    say(f'{"stale" if "--check" in arguments else "wrote"}    {path.relative_to(ROOT)}')
  return int(bool(changed) and '--check' in arguments)


if __name__ == '__main__':
  sys.exit(main(sys.argv[1:]))
