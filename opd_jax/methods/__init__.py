"""Floor 4. One paper, one file, one function of the same name. Found by looking, never registered."""

import importlib
import inspect
import pkgutil
from collections.abc import Callable
from types import ModuleType
from typing import Any, NamedTuple


class Entry(NamedTuple):
  """A method as the table shows it."""

  name: str
  summary: str  # first sentence of the docstring
  paper: str
  make: Callable[..., Any]


def discover(package: ModuleType | None = None) -> tuple[Entry, ...]:
  """Every method of a package (by default this one), in alphabetical order."""
  package = package or importlib.import_module(__name__)
  found = []
  for info in pkgutil.iter_modules(package.__path__):
    module = importlib.import_module(f'{package.__name__}.{info.name}')
    make = getattr(module, info.name, None)
    if not inspect.isfunction(make) or not make.__doc__:
      raise ValueError(
        f'methods: {module.__file__} must define the function {info.name}() with a docstring; '
        'one file is one method and is named like it.'
      )
    summary = inspect.cleandoc(make.__doc__).split('\n')[0]
    found.append(Entry(name=info.name, summary=summary, paper=make().paper, make=make))
  return tuple(sorted(found))
