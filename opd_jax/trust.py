"""Floor 6. What gin files may import and call; gin itself would import and call anything. See SECURITY.md."""

import importlib
import importlib.machinery
import importlib.util
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

LIBRARY = 'opd_jax'
MODULES = (  # of the library, with all that is in them: what experiments are made of
  'data',
  'evaluation.evaluator',
  *(f'evaluation.graders.{name}' for name in ('both', 'integers', 'maths', 'texts', 'tool_calls')),
  'inference',
  'judges',
  'losses',
  'methods',
  'models',
  'ramps',
  'rollouts',
  'sharding',
  'storage.hub_tokenizer',
  'storage.load',
  *(
    f'training.{name}'
    for name in ('alarms', 'experiment', 'optimisers', 'rollout_records', 'stopping')
  ),
)
GIN = 'gin.config'
ADVICE = (
  'gin files may import what experiments are made of, and modules of their own folder. If you know what {name} does, '
  'name it, --module {top}; if you wrote these files, --trust_gin allows everything.'
)


class Trust:
  """What the gin files of one experiment may do.

  Args:
    modules: that the user names; the working directory is searched for them, too.
    everything: whatever a file imports.
  """

  def __init__(self, modules: Sequence[str] = (), *, everything: bool = False):
    self.everything = everything
    self.granted = set(modules)
    self.in_force = [f'{LIBRARY}.{name}' for name in MODULES]
    if (modules or everything) and str(Path.cwd()) not in sys.path:
      sys.path.append(str(Path.cwd()))
    for name in modules:
      _ = imported(name)

  def importing(self, module: str, folder: Path | None) -> None:
    """Refuses an import before it happens.

    Args:
      module: its dotted name.
      folder: of the file that imports it; None for the command line.
    """
    top = module.split('.')[0]
    if (
      self._allowed(module) or module == GIN
    ):  # gin writes that import itself, where there are macros
      return
    if top == LIBRARY and importlib.util.find_spec(top) is not None:
      if self._is_missing(module):
        raise ImportError(f'there is no {module}')
      raise ValueError(
        f'{module} is no part of an experiment: {ADVICE.format(name=module, top=module)}'
      )
    if folder is None or not self._beside(top, folder.resolve()):
      raise ValueError(f'{module} is not imported: {ADVICE.format(name=module, top=top)}')
    self.granted.add(top)

  def calling(self, function: Any, name: str) -> None:
    """Refuses what an allowed module merely imports from elsewhere, e.g. `sources.json.dumps`."""
    home = getattr(function, '__module__', None) or 'nowhere'
    if not self._allowed(home):
      raise ValueError(
        f'{name} is {home}.{getattr(function, "__qualname__", name)}: '
        + ADVICE.format(name=home, top=home.split('.')[0])
      )

  def _allowed(self, module: str) -> bool:
    within = lambda root: module == root or module.startswith(f'{root}.')
    return self.everything or any(map(within, (*self.in_force, *self.granted)))

  def _is_missing(self, module: str) -> bool:
    try:
      return importlib.util.find_spec(module) is None
    except ModuleNotFoundError:
      return True

  def _beside(self, top: str, folder: Path) -> bool:
    """Whether a module lies in the folder, and its name means no other; then it can be imported."""
    own = importlib.machinery.PathFinder.find_spec(top, [str(folder)])
    if own is None or own.origin is None:
      return False
    if str(folder) not in sys.path:
      sys.path.append(str(folder))
    found = importlib.util.find_spec(top)
    return (
      found is not None and found.origin is not None and Path(found.origin).samefile(own.origin)
    )


def imported(name: str) -> Any:
  """Imports a module by its name, also from the working directory."""
  if str(Path.cwd()) not in sys.path:
    sys.path.append(str(Path.cwd()))
  try:
    return importlib.import_module(name)
  except ImportError as error:
    raise ValueError(
      f'--module {name} cannot be imported ({error}). Give its name without .py, from its own folder.'
    ) from error
