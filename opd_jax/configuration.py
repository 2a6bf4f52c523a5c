"""Floor 6. gin files and bindings -> an experiment. This is the only file that imports gin."""

import io
import re
import tokenize
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any, TypeVar

import gin
import gin.config
from gin import config_parser

from opd_jax import kinds
from opd_jax.gin_files import FLAG, IMPORT, GinFile, parse_message, read_files, unfinished_line
from opd_jax.training.experiment import Experiment
from opd_jax.trust import Trust

DYNAMIC = '__gin__.dynamic_registration'
BUILT_IN = ('gin.macro', 'gin.constant', 'gin.singleton')
REQUIRED = '%gin.REQUIRED'
CALLED = re.compile(r"\n  In call to configurable '(\S+)' .*")  # gin's words behind ours
SHIPPED = {'MODEL': 'models', 'METHOD': 'methods', 'TASK': 'data', 'TOKENIZER': 'data'}
MISTAKES = (
  ValueError, AttributeError,
  TypeError, SyntaxError, ImportError, NameError, KeyError, tokenize.TokenError,
)  # fmt: skip

Root = TypeVar('Root')
Selector = tuple[str, str]  # scope and full name of a function
Bindings = dict[Selector, dict[str, Any]]


def build(
  files: Sequence[str], bindings: Sequence[str], trust: Trust | None = None
) -> tuple[Experiment, str]:
  """Builds the experiment and returns it with the configuration that was in force."""
  return record_of(Experiment, files, bindings, trust)


def record_of(
  root: type[Root], files: Sequence[str], bindings: Sequence[str], trust: Trust | None = None
) -> tuple[Root, str]:
  """Builds a record that gin files describe and returns it with the configuration that was in force.

  gin is finished when this returns: the result is plain Python, and nothing jitted ever calls gin.

  Args:
    root: the record, e.g. Experiment.
    files: gin files, in order; later ones win, and a file wins over what it includes.
    bindings: gin bindings; they win over the files.
    trust: what both may import and call; None: what experiments are made of, and modules of the files' own folders.
  """
  if not files:
    raise ValueError('no experiment given. Name a --gin_file, e.g. experiments/models/tiny.gin.')
  texts, trust = list(read_files(files)), trust or Trust()
  last, flags = _own_bindings(texts, bindings, trust)
  _parse_all(texts, bindings, trust)
  built = _constructed(root)
  unused = _unused(_without_required(last), except_for=_overridden(last, flags))
  if unused := sorted({*unused, *_unused(flags)}):
    raise ValueError(
      f'these bindings changed nothing: {", ".join(unused)}. Nothing that is built reads them; '
      'remove them, or name what you meant to set.'
    )
  return built, gin.operative_config_str()


class _Refused(ValueError):
  """A refusal of ours, with its file and line."""


# --- parsing --------------------------------------------------------------------------------------


def _parse_all(files: Sequence[GinFile], bindings: Sequence[str], trust: Trust) -> None:
  """Fills gin with all files and then with the bindings."""
  gin.clear_config()
  for file in files:
    before = _copied(gin.config._CONFIG)
    _parse(file.text, str(file.path), files, trust)
    _restore_under_placeholders(before)
  # Bindings may name whatever the files import, also what the files do not use.
  imports = IMPORT.findall(gin.config_str())
  _parse('\n'.join([*imports, *bindings]), FLAG, files, trust)


def _parse(text: str, name: str, files: Sequence[GinFile], trust: Trust) -> None:
  stream = io.StringIO(text)
  stream.name = name  # gin names it in its messages
  try:
    _check_imports(stream, name, trust)
    stream.seek(0)
    gin.parse_config(stream)
  except _Refused as error:
    raise ValueError(str(error)) from error
  except MISTAKES as error:
    if isinstance(error, tokenize.TokenError):
      line = f', line {unfinished_line(text)}' if name != FLAG else ''
      raise ValueError(
        f'{name}{line}: a value does not end ({error.args[0]}). Check brackets and quotes.'
      ) from error
    raise ValueError(parse_message(error, name, files)) from error
  _check_called(name, trust)


class _Unresolved(config_parser.ParserDelegate):
  """Reads values without looking anything up."""

  def configurable_reference(self, scoped_configurable_name: str, evaluate: bool) -> None: ...

  def macro(self, macro_name: str) -> None: ...


def _check_imports(stream: io.StringIO, name: str, trust: Trust) -> None:
  """Refuses what a file may not import, before gin reads the file and does it."""
  for statement in config_parser.ConfigParser(stream, _Unresolved()):
    line = '' if name == FLAG else f', line {statement.location.line_num}'
    if isinstance(statement, config_parser.IncludeStatement):
      raise _Refused(f'{name}{line}: an include stands on a line of its own, without indentation.')
    if not isinstance(statement, config_parser.ImportStatement):
      continue
    if statement.module == DYNAMIC:
      continue
    try:
      trust.importing(statement.module, None if name == FLAG else Path(name).parent)
    except (ValueError, ImportError) as error:
      raise _Refused(f'{name}{line}: {error}') from error


def _check_called(name: str, trust: Trust) -> None:
  """Refuses bindings of functions that no file may call."""
  bound = {selector for _, selector in gin.config._CONFIG}
  called = {each.config_key[1] for each in gin.config.iterate_references(gin.config._CONFIG)}
  for selector in sorted({*bound, *called}):
    if selector not in BUILT_IN:
      try:
        trust.calling(gin.config._REGISTRY[selector].wrapped, selector)
      except ValueError as error:
        raise ValueError(f'{name}: {error}') from error


def _restore_under_placeholders(before: Bindings) -> None:
  """A placeholder of a base that is read late takes back nothing that an earlier file has set."""
  for (scope, selector), values in before.items():
    for argument, value in values.items():
      if repr(gin.config._CONFIG[scope, selector][argument]) == REQUIRED:
        gin.bind_parameter((scope, selector, argument), value)


def _own_bindings(
  files: Sequence[GinFile], bindings: Sequence[str], trust: Trust
) -> tuple[Bindings, Bindings]:
  """What the last file says without its includes, and what the command line says: these must be read."""
  _parse_all(files, (), trust)
  imports = IMPORT.findall(gin.config_str())
  gin.clear_config()
  _parse(files[-1].text, str(files[-1].path), files, trust)
  last = _copied(gin.config._CONFIG)
  gin.clear_config()
  _parse('\n'.join([*imports, *bindings]), FLAG, files, trust)
  return last, _copied(gin.config._CONFIG)


def _constructed(root: type[Root]) -> Root:
  """The record that gin was told of."""
  try:
    built = gin.get_configurable(root)()
    kinds.check(built)
  except (*MISTAKES, RuntimeError) as error:
    _refuse_required(error)
    if 'macro() missing' in str(error):
      raise ValueError(f'experiment: nobody sets {_unset_macros()}. Check the spelling.') from error
    reason = CALLED.sub('' if isinstance(error, ValueError) else r' (in a call of \1)', str(error))
    raise ValueError(f'{root.__name__.lower()}: {reason.strip()}') from error
  _refuse_required(None)
  return built


def _unset_macros() -> str:
  """The macros that values name and nothing binds, as files spell them."""
  named = {each.config_key for each in gin.config.iterate_references(gin.config._CONFIG)}
  return ', '.join(
    f'%{scope}'
    for scope, selector in sorted(named)
    if selector == 'gin.macro' and (scope, selector) not in gin.config._CONFIG
  )


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
