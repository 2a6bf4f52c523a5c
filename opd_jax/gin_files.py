"""Floor 6. gin files as text: they are read here, and what is wrong with one is said by its file and line."""

import io
import re
import tokenize
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

INCLUDE = re.compile(r"""^include\s+(['"])(.+?)\1.*$""", flags=re.MULTILINE)
IMPORT = re.compile(r'^(?:from|import) .*$', flags=re.MULTILINE)
REGISTRATION = 'from __gin__ import dynamic_registration'
FLAG = '--gin_bindings'
HOME = Path(__file__).parents[1]  # holds experiments/ where the repository is installed from


class GinFile(NamedTuple):
  """A file that was read. Its includes are blank lines: they were read before it."""

  path: Path
  text: str


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
  name = Path(name).expanduser()
  folders = [Path(), *(includer.resolve().parents if includer else ()), HOME]
  path = next((folder / name for folder in folders if (folder / name).is_file()), None)
  if path is None:
    by = f', included by {includer}' if includer else ''
    kind = 'gin file is a folder' if name.is_dir() else 'gin file not found'
    raise ValueError(f'{kind}: {name}{by}. The shipped files lie in experiments/.')
  return path


def unfinished_line(text: str) -> int:
  """The line where a value begins that never ends: the one behind the last line that can end a file."""
  lines = text.splitlines(keepends=True)
  for count in range(len(lines) - 1, 0, -1):
    try:
      list(tokenize.generate_tokens(io.StringIO(''.join(lines[:count])).readline))
    except (tokenize.TokenError, SyntaxError):
      continue
    return count + 1
  return 1


def parse_message(error: Exception, name: str, files: Sequence[GinFile]) -> str:
  """What is wrong in one line, led by the file and the line number."""
  if isinstance(error, SyntaxError):
    own = error.filename in (name, None, '<tokenize>', '<string>')
    line = f', line {error.lineno}' if error.lineno and name != FLAG else ''
    shown = f' In: {error.text.strip()}' if error.text else ''
    return _one_line(f'{name}{line}: {error.msg}{shown}' if own else f'{name}: {error}')
  text, line, shown = str(error).strip(), '', ''
  if place := re.search(r'\n\s*In (?:file ".*",|bindings string) line (\d+)\n\s*(.*)', text):
    line = f', line {place[1]}' if name != FLAG else ''
    text, shown = text[: place.start()].strip(), f' In: {place[2].strip()}'
  return _one_line(f'{name}{line}: {text}{shown}{_advice(text, name, files)}')


def _one_line(text: str) -> str:
  return ' '.join(text.split())


def _advice(text: str, name: str, files: Sequence[GinFile]) -> str:
  """What to do about a mistake, where it can be said."""
  if "doesn't have a parameter named" in text or 'has no field' in text:
    return ' Check the spelling against the function that is named.'
  if 'No configurable matching' in text:
    return f' The first statement of {name} must be `{REGISTRATION}`, and the module must be imported behind it.'
  if 'was not provided by an import' not in text:
    return ''
  module = text.split("'")[1]
  for file in files:
    for statement in IMPORT.findall(file.text):
      if re.search(rf'\b{module}\s*(#.*)?$', statement):
        return (
          f' An import serves its own file only. Repeat `{statement}` of {file.path} in {name}.'
        )
  if name == FLAG:
    return (
      f' None of the gin files given imports it: add one that does, e.g. a file of your own with `{REGISTRATION}` and '
      f'`from opd_jax… import {module}`.'
    )
  return f' No gin file given imports it: import the module of {module} in {name}.'
