"""Floor 4. One paper, one file, one function of the same name. Found by looking, never registered."""

import importlib
import inspect
import pkgutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from types import ModuleType
from typing import Any, NamedTuple


class Entry(NamedTuple):
  """A method as the table shows it."""

  name: str
  summary: str  # first sentence of the docstring
  paper: str
  make: Callable[..., Any]
  variants: Mapping[str, Mapping[str, Any]]  # settings that papers compare, by name


def discover(module: ModuleType | None = None) -> tuple[Entry, ...]:
  """Every method of a package, by default this one, in alphabetical order; or the one of a single file.

  Args:
    module: a package whose files are methods, or a file that is one.
  """
  return tuple(sorted(map(_entry, _files(module or importlib.import_module(__name__)))))


def named(name: str, methods: Sequence[Entry]) -> Entry:
  """The method of a name among some; who asks for another is told which there are."""
  for method in methods:
    if method.name == name:
      return method
  names = ', '.join(method.name for method in methods)
  raise ValueError(f'no method is called {name!r}; there are {names}.')


def _files(module: ModuleType) -> Iterator[ModuleType]:
  if not hasattr(module, '__path__'):
    yield module
    return
  for info in pkgutil.iter_modules(module.__path__):
    yield importlib.import_module(f'{module.__name__}.{info.name}')


def _entry(file: ModuleType) -> Entry:
  name = file.__name__.rpartition('.')[2]
  make = getattr(file, name, None)
  if not inspect.isfunction(make) or not make.__doc__:
    raise ValueError(
      f'methods: {file.__file__} must define the function {name}() with a docstring; '
      'one file is one method and is named like it.'
    )
  summary = inspect.cleandoc(make.__doc__).split('\n')[0]
  return Entry(name, summary, make().paper, make, getattr(file, 'VARIANTS', {}))
