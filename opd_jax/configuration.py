"""Floor 6. gin files and bindings -> an experiment. This is the only file that imports gin."""

import io
import re
import sys
import tokenize
from collections.abc import Collection, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import gin
import gin.config

from opd_jax import kinds
from opd_jax.training.experiment import Experiment

INCLUDE = re.compile(r"""^include\s+(['"])(.+?)\1.*$""", flags=re.MULTILINE)
IMPORT = re.compile(r'^(?:from|import) .*$', flags=re.MULTILINE)
REGISTRATION = 'from __gin__ import dynamic_registration'
FLAG = '--gin_bindings'
REQUIRED = '%gin.REQUIRED'
CALLED = re.compile(r"\n  In call to configurable '(\S+)' .*")  # gin's words behind ours
SHIPPED = {'MODEL': 'models', 'METHOD': 'methods', 'TASK': 'data', 'TOKENIZER': 'data'}
HOME = Path(__file__).parents[1]  # holds experiments/ where the repository is installed from
MISTAKES = (
  ValueError, AttributeError,
  TypeError, SyntaxError, ImportError, NameError, KeyError, tokenize.TokenError,
)  # fmt: skip

Root = TypeVar('Root')
Selector = tuple[str, str]  # scope and full name of a function
Bindings = dict[Selector, dict[str, Any]]


class GinFile(NamedTuple):
  """A file that was read. Its includes are blank lines: they were read before it."""

  path: Path
  text: str


def build(files: Sequence[str], bindings: Sequence[str]) -> tuple[Experiment, str]:
  """Builds the experiment and returns it with the configuration that was in force."""
  return record_of(Experiment, files, bindings)


def record_of(root: type[Root], files: Sequence[str], bindings: Sequence[str]) -> tuple[Root, str]:
  """Builds a record that gin files describe and returns it with the configuration that was in force.

  gin is finished when this returns: the result is plain Python, and nothing jitted ever calls gin.

  Args:
    root: the record, e.g. Experiment.
    files: gin files, in order; later ones win, and a file wins over what it includes. Modules of the working directory
      can be imported by them.
    bindings: gin bindings; they win over the files.
  """
  if not files:
    raise ValueError('no experiment given. Name a --gin_file, e.g. experiments/models/tiny.gin.')
  if str(Path.cwd()) not in sys.path:
    sys.path.append(str(Path.cwd()))
  texts = list(read_files(files))
  last, flags = _own_bindings(texts, bindings)
  _parse_all(texts, bindings)
  built = _constructed(root)
  unused = _unused(_without_required(last), except_for=_overridden(last, flags))
  if unused := sorted({*unused, *_unused(flags)}):
    raise ValueError(
      f'these bindings changed nothing: {", ".join(unused)}. Nothing that is built reads them; '
      'remove them, or name what you meant to set.'
    )
  return built, gin.operative_config_str()


# --- files ----------------------------------------------------------------------------------------


def read_files(
  names: Iterable[str | Path], includer: Path | None = None, seen: set[Path] | None = None
) -> Iterator[GinFile]:
  """Each file once, after the files that it includes: a base that is read again would take back what was set over it.

  An include is looked for from the working directory, from every folder above its includer, and from ours.
  """
  seen = set() if seen is None else seen
  for name in names:
    path = _located(name, includer)
    if path.resolve() in seen:
      continue
    seen.add(path.resolve())
    try:
      text = path.read_text(encoding='utf-8')
    except UnicodeDecodeError as error:
      raise ValueError(f'{path}: this is not a text file ({error}).') from error
    included = [match[1] for match in INCLUDE.findall(text)]
    yield from read_files(included, includer=path, seen=seen)
    yield GinFile(path, INCLUDE.sub('', text))


def _located(name: str | Path, includer: Path | None) -> Path:
  folders = [Path(), *(includer.resolve().parents if includer else ()), HOME]
  path = next((folder / name for folder in folders if (folder / name).is_file()), None)
  if path is None:
    by = f', included by {includer}' if includer else ''
    kind = 'gin file is a folder' if Path(name).is_dir() else 'gin file not found'
    raise ValueError(f'{kind}: {name}{by}. The shipped files lie in experiments/.')
  return path


# --- parsing --------------------------------------------------------------------------------------


def _parse_all(files: Sequence[GinFile], bindings: Sequence[str]) -> None:
  """Fills gin with all files and then with the bindings."""
  gin.clear_config()
  for file in files:
    before = _copied(gin.config._CONFIG)
    _parse(file.text, str(file.path), files)
    _restore_under_placeholders(before)
  # Bindings may name whatever the files import, also what the files do not use.
  imports = IMPORT.findall(gin.config_str())
  _parse('\n'.join([*imports, *bindings]), FLAG, files)


def _parse(text: str, name: str, files: Sequence[GinFile]) -> None:
  stream = io.StringIO(text)
  stream.name = name  # gin names it in its messages
  try:
    gin.parse_config(stream)
  except MISTAKES as error:
    if isinstance(error, tokenize.TokenError):
      line = f', line {_unfinished_line(text)}' if name != FLAG else ''
      raise ValueError(
        f'{name}{line}: a value does not end ({error.args[0]}). Check brackets and quotes.'
      ) from error
    raise ValueError(_parse_message(error, name, files)) from error


def _restore_under_placeholders(before: Bindings) -> None:
  """A placeholder of a base that is read late takes back nothing that an earlier file has set."""
  for (scope, selector), values in before.items():
    for argument, value in values.items():
      if repr(gin.config._CONFIG[scope, selector][argument]) == REQUIRED:
        gin.bind_parameter((scope, selector, argument), value)


def _own_bindings(files: Sequence[GinFile], bindings: Sequence[str]) -> tuple[Bindings, Bindings]:
  """What the last file says without its includes, and what the command line says: these must be read."""
  _parse_all(files, ())
  imports = IMPORT.findall(gin.config_str())
  gin.clear_config()
  _parse(files[-1].text, str(files[-1].path), files)
  last = _copied(gin.config._CONFIG)
  gin.clear_config()
  _parse('\n'.join([*imports, *bindings]), FLAG, files)
  return last, _copied(gin.config._CONFIG)


def _constructed(root: type[Root]) -> Root:
  """The record that gin was told of."""
  try:
    built = gin.get_configurable(root)()
    kinds.check(built)
  except (*MISTAKES, RuntimeError) as error:
    _refuse_required(error)
    reason = CALLED.sub('' if isinstance(error, ValueError) else r' (in a call of \1)', str(error))
    raise ValueError(f'{root.__name__.lower()}: {reason.strip()}') from error
  _refuse_required(None)
  return built


def _refuse_required(cause: Exception | None) -> None:
  """Refuses a placeholder that was read. One that nothing reads is no mistake."""
  for (scope, selector), values in gin.config._OPERATIVE_CONFIG.items():
    for argument, value in values.items():
      if repr(value) == REQUIRED:
        name = _name(scope, selector, argument)
        folder = f' (experiments/{SHIPPED[name]}/)' if name in SHIPPED else ''
        raise ValueError(
          f'experiment: {name} is required and nobody set it. Add a --gin_file that does{folder}, '
          f"or {FLAG} '{name} = …'."
        ) from cause


# --- what was read --------------------------------------------------------------------------------
# gin publishes its two tables as text only, where a function's name depends on what else is imported.


def _unused(own: Bindings, except_for: Collection[Selector] = ()) -> list[str]:
  """Names of bindings that no call took its value from."""
  effective = {
    (_nearest_scope(scope, selector, argument), selector, argument)
    for (scope, selector), values in gin.config._OPERATIVE_CONFIG.items()
    for argument in values
  }
  return [
    _name(scope, selector, argument)
    for (scope, selector), values in own.items()
    for argument in values
    if (scope, selector) not in except_for and (scope, selector, argument) not in effective
  ]


def _nearest_scope(scope: str, selector: str, argument: str) -> str | None:
  """The scope whose binding a call in `scope` takes: the innermost that binds the argument."""
  parts = scope.split('/') if scope else []
  for count in range(len(parts), -1, -1):
    outer = '/'.join(parts[:count])
    if argument in gin.config._CONFIG.get((outer, selector), {}):
      return outer
  return None


def _overridden(last: Bindings, flags: Bindings) -> set[Selector]:
  """Functions that only those bindings of the last file refer to which the command line replaces."""
  replaced = [
    value
    for selector, values in last.items()
    for argument, value in values.items()
    if argument in flags.get(selector, {})
  ]
  reached: set[Selector] = set()
  while replaced:
    for reference in gin.config.iterate_references(replaced.pop()):
      if reference.config_key not in reached:
        reached.add(reference.config_key)
        replaced.append(last.get(reference.config_key, {}))
  return reached


def _without_required(own: Bindings) -> Bindings:
  """Without placeholders, which wait for a later file and bind nothing."""
  return {
    key: {argument: value for argument, value in values.items() if repr(value) != REQUIRED}
    for key, values in own.items()
  }


def _copied(bindings: Bindings) -> Bindings:
  return {key: dict(values) for key, values in bindings.items()}


def _name(scope: str, selector: str, argument: str) -> str:
  """A binding as a file spells it: `MACRO`, or `scope/module.function.argument`."""
  if selector == 'gin.macro':
    return scope
  short = '.'.join(selector.split('.')[-2:])
  return f'{scope}/{short}.{argument}' if scope else f'{short}.{argument}'


# --- messages -------------------------------------------------------------------------------------


def _unfinished_line(text: str) -> int:
  """The line where a value begins that never ends: the one behind the last line that can end a file."""
  lines = text.splitlines(keepends=True)
  for count in range(len(lines) - 1, 0, -1):
    try:
      list(tokenize.generate_tokens(io.StringIO(''.join(lines[:count])).readline))
    except (tokenize.TokenError, SyntaxError):
      continue
    return count + 1
  return 1


def _parse_message(error: Exception, name: str, files: Sequence[GinFile]) -> str:
  """What is wrong, led by the file and the line."""
  if isinstance(error, SyntaxError):
    own = error.filename in (name, None, '<tokenize>', '<string>')
    line = f', line {error.lineno}' if error.lineno and name != FLAG else ''
    shown = f'\n  in: {error.text.strip()}' if error.text else ''
    return f'{name}{line}: {error.msg}{shown}' if own else f'{name}: {error}'
  text, line, shown = str(error).strip(), '', ''
  if place := re.search(r'\n\s*In (?:file ".*",|bindings string) line (\d+)\n\s*(.*)', text):
    line = f', line {place[1]}' if name != FLAG else ''
    text, shown = text[: place.start()], f'\n  in: {place[2].strip()}'
  return f'{name}{line}: {text}{shown}{_advice(text, name, files)}'


def _advice(text: str, name: str, files: Sequence[GinFile]) -> str:
  """What to do about a mistake, where it can be said."""
  if "doesn't have a parameter named" in text or 'has no field' in text:
    return '\nCheck the spelling against the function that is named.'
  if 'No configurable matching' in text:
    return f'\nThe first statement of {name} must be `{REGISTRATION}`, and the module must be imported behind it.'
  if 'was not provided by an import' not in text:
    return ''
  module = text.split("'")[1]
  for file in files:
    for statement in IMPORT.findall(file.text):
      if re.search(rf'\b{module}\s*(#.*)?$', statement):
        return (
          f'\nAn import serves its own file only. Repeat `{statement}` of {file.path} in {name}.'
        )
  if name == FLAG:
    return (
      '\nNone of the gin files given imports it: add one that does, e.g. of experiments/models.'
    )
  return f'\nNo gin file given imports it: import the module of {module} in {name}.'
