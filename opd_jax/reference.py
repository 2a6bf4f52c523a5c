"""Floor 6. Everything that gin files may bind, from signatures and docstrings: for `opd params` and the pages."""

import ast
import functools
import importlib
import inspect
import re
from collections.abc import Iterator
from types import ModuleType
from typing import Any, NamedTuple

from opd_jax.methods import Entry, discover

JUDGES = (
  'frozen',
  'foreign',
  'itself',
  'never',
  'ema',
  'every',
  'live',
  'gated',
  'routed',
  'combined',
  'averaged',
  'served',
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
  ('Options of served judges', 'judges.served_spec', ('Served',)),
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
  ('Tiny world: sums', 'data.tiny_worlds.sums', ('sums', 'tokenizer', 'numbers', 'signs')),
  ('Tiny world: calls', 'data.tiny_worlds.calls', ('calls', 'tokenizer')),
  ('Tasks and readers', 'data.problems', ('Task', 'from_columns', 'from_messages')),
  ('Readers of published data sets', 'data.published', None),
  ('Sources', 'data.sources', ('json_lines', 'parquet', 'hub')),
  ('Mixtures of tasks', 'data.mixture', ('mixture',)),
  ('Templates', 'data.templates', ('Template',)),
  ('Tokenizers', 'data.tokenizers', ('CharacterTokenizer', 'ByteTokenizer', 'HubTokenizer')),
  ('A tokenizer with pieces of text', 'data.pieces', ('PieceTokenizer',)),
  ('Tokenizers that are read when a run begins', 'storage.hub_tokenizer', ('Published',)),
)
RECORDS = ('Experts', 'RopeScaling')  # inside a model's settings
HIDDEN = {
  'members_of',
  'Compared',
  'View',
  'WeightedTerm',
  'OutsideMass',
  'named_parts',
  'draw',
  'value_of',
}
HIDDEN |= {'all_between', 'require'}  # what rules of other files are made with


class Argument(NamedTuple):
  """An argument that can be bound."""

  name: str
  kind: str  # its annotation
  default: str  # '' where it must be bound
  meaning: str


class Bindable(NamedTuple):
  """A function or record of gin files."""

  name: str  # as bindings spell it: module.name
  text: str  # of its docstring, without the arguments
  arguments: tuple[Argument, ...]
  note: str = ''


class Section(NamedTuple):
  """What one module offers."""

  title: str
  imported: str  # the line that a gin file needs; '' where each has its own
  bindables: tuple[Bindable, ...]


def sections() -> Iterator[Section]:
  """All of it: methods first, presets last."""
  methods = [bindable for entry in discover() for bindable in of_method(entry)]
  yield Section('Methods', '', tuple(methods))
  for title, path, chosen in SECTIONS:
    module = importlib.import_module(f'opd_jax.{path}')
    prefix = path.rpartition('.')[2]
    listed = tuple(bindable(module, name, prefix) for name in names_of(module, chosen))
    yield Section(title, import_of(path), listed)
  from opd_jax.models import config

  records = tuple(bindable(config, name, 'config') for name in ('ModelConfig', *RECORDS))
  yield Section('Presets', 'from opd_jax.models import presets', records)


def of_method(entry: Entry) -> Iterator[Bindable]:
  """A method and the records of its file."""
  module = importlib.import_module(entry.make.__module__)
  listed = '; '.join(
    f'*{name}* ({", ".join(f"`{key} = {value!r}`" for key, value in settings.items())})'
    for name, settings in entry.variants.items()
  )
  prefix = module.__name__.rpartition('.')[2]
  method = bindable(module, entry.name, prefix)
  yield method._replace(note=f'Variants: {listed}.') if listed else method
  for name in names_of(module, None):
    if name != entry.name and inspect.isclass(getattr(module, name)):
      yield bindable(module, name, prefix)


def bindable(module: ModuleType, name: str, prefix: str) -> Bindable:
  """One thing that can be bound."""
  made = getattr(module, name)
  home = importlib.import_module(made.__module__)
  text, meanings = described(inspect.cleandoc(made.__doc__ or ''))
  listed = tuple(
    Argument(*each, meanings.get(each[0], '')) for each in arguments(home, name) if each[0]
  )
  return Bindable(f'{prefix}.{name}', text, listed)


def import_of(path: str) -> str:
  """The line with which a gin file imports a module of the library."""
  folder, _, name = path.rpartition('.')
  return f'from opd_jax{"." + folder if folder else ""} import {name}'


def names_of(module: ModuleType, chosen: tuple[str, ...] | None) -> list[str]:
  if chosen is not None:
    return list(chosen)
  nodes = [name for name in source_of(module) if not name.startswith('_') and name not in HIDDEN]
  own = [getattr(module, name) for name in nodes]
  bases = {base for each in own if inspect.isclass(each) for base in each.__bases__}
  return [name for name in nodes if getattr(module, name) not in bases]


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
      return [(ast.unparse(part.target), ast.unparse(part.annotation), default(module, part.value))
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
