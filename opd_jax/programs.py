"""Floor 0. Compiled programs: kept in a folder for later runs, and counted while they are made."""

import contextlib
import hashlib
import os
import platform
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import jax

MOST = (
  4 * 2**30
)  # bytes that the folder may hold when a run begins; what was used longest ago goes first
LEAST_SECONDS = 'jax_persistent_cache_min_compile_time_secs'
COMPILED = '/jax/core/compile/backend_compile_duration'
LOWERED = '/jax/core/compile/jaxpr_to_mlir_module_duration'
FOUND = '/jax/compilation_cache/cache_hits'


def keep(say: Callable[[str], None]) -> None:
  """Keeps compiled programs in the user's cache folder, so that the next run or a resumed one does not pay again.

  JAX's own settings go first: JAX_COMPILATION_CACHE_DIR names another folder, JAX_ENABLE_COMPILATION_CACHE=0 keeps
  nothing. A folder that cannot be written costs time, never the run.
  """
  settings: Any = jax.config
  if not settings.jax_enable_compilation_cache or settings.jax_compilation_cache_dir:
    return
  try:
    folder = folder_of_user()
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)  # whoever writes there can run code here
    probe = folder / f'.writable_{os.getpid()}_{threading.get_ident()}'
    probe.write_text('')
    probe.unlink()
    tidy(folder, most=MOST)
  except (OSError, RuntimeError) as error:  # a RuntimeError: there is no home
    say(
      f'compiled programs are not kept for the next run: {error}. JAX_COMPILATION_CACHE_DIR names another folder.'
    )
    return
  jax.config.update('jax_compilation_cache_dir', str(folder))
  if (
    LEAST_SECONDS.upper() not in os.environ
  ):  # a tiny run has hundreds of programs of a tenth of a second
    jax.config.update(LEAST_SECONDS, 0.0)


def folder_of_user() -> Path:
  """$XDG_CACHE_HOME/opd_jax or ~/.cache/opd_jax, and in it one folder for each kind of processor: homes are shared."""
  return cache_of_user() / 'programs' / processor()


def cache_of_user() -> Path:
  """$XDG_CACHE_HOME/opd_jax or ~/.cache/opd_jax: all that is kept for later runs."""
  home = os.environ.get('XDG_CACHE_HOME') or Path.home() / '.cache'
  return Path(home) / 'opd_jax'


def processor() -> str:
  """A short name of what programs for this machine's processor may use."""
  facts = [platform.system(), platform.machine()]
  file = Path('/proc/cpuinfo')
  if file.exists():
    wanted = ('model name', 'flags', 'Features')
    facts += sorted({line for line in file.read_text().splitlines() if line.startswith(wanted)})
  return hashlib.sha256('\n'.join(facts).encode()).hexdigest()[:12]


def tidy(folder: Path, *, most: int) -> None:
  """Removes the files that were used longest ago until at most so many bytes are left; others may do the same."""
  files = []
  for file in folder.iterdir():
    with contextlib.suppress(OSError):
      files.append((file.stat(), file))
  held = sum(stat.st_size for stat, _ in files)
  for stat, file in sorted(files, key=lambda each: max(each[0].st_atime, each[0].st_mtime)):
    if held <= most:
      return
    held -= stat.st_size
    with contextlib.suppress(OSError):
      file.unlink()


class Count:
  """Programs that were made since counting began: how many, how many of them lay in the folder, in how much time.

  Args:
    tell: told of every program, in the thread that waits for it.
  """

  def __init__(self, tell: Callable[['Count'], None]):
    self.programs, self.found, self.seconds, self.waited = 0, 0, 0.0, 0.0
    self._tell, self._lock, self._main = tell, threading.Lock(), threading.get_ident()

  def duration(self, event: str, duration_secs: float, **kwargs: str | int) -> None:
    if event not in (COMPILED, LOWERED):
      return
    here = threading.get_ident() == self._main
    with self._lock:
      self.programs += event == COMPILED
      self.seconds += duration_secs
      self.waited += duration_secs if here else 0.0  # the run stood still
    if here and event == COMPILED:
      self._tell(self)

  def event(self, event: str, **kwargs: str | int) -> None:
    with self._lock:
      self.found += event == FOUND

  def __str__(self) -> str:
    kept = f' ({self.found} kept from before)' if self.found else ''
    return f'{self.programs} programs{kept}, {self.seconds:.0f} s'


@contextmanager
def counted(tell: Callable[[Count], None] = lambda count: None) -> Iterator[Count]:
  """Counts the programs that this process makes from here on."""
  count = Count(tell)
  jax.monitoring.register_event_duration_secs_listener(count.duration)
  jax.monitoring.register_event_listener(count.event)
  try:
    yield count
  finally:
    jax.monitoring.unregister_event_duration_listener(count.duration)
    jax.monitoring.unregister_event_listener(count.event)
