"""Floor 2. Where files lie: in a folder of this machine, or in a bucket (`gs://…`), which holds whole objects only.

A bucket has no rename, no append and no lock. So a file there is written in one piece (it is there with all of its
bytes, or as it was before), what grows is kept in a `Spool` of this machine and sent whole, and a folder is there when
its mark is, which comes last. Paths of this machine go the way that they always went.
"""

import contextlib
import hashlib
import importlib.util
import os
import shutil
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path

from etils import epath

from opd_jax.programs import cache_of_user

Place = Path | epath.Path
REMOTE = 'gs://'


def place(text: str | os.PathLike) -> Place:
  """The path that a user names."""
  text = str(text)
  if '://' not in text:
    return Path(text).expanduser()
  if not text.startswith(REMOTE):
    raise ValueError(
      f'{text}: of buckets only {REMOTE}… is known here. Take such a one, or a folder of this machine.'
    )
  if importlib.util.find_spec('gcsfs') is None:
    raise ValueError(f'{text}: buckets need gcsfs. pip install "opd_jax[gcs]".')
  from fsspec.config import conf

  for name in ('gs', 'gcs'):  # a kept list does not show what other hosts have written since
    conf.setdefault(name, {})['use_listings_cache'] = False
  return epath.Path(text)


def here_only(text: str | os.PathLike, what: str) -> Path:
  """A path of this machine; `what` is it for, where a bucket is refused."""
  if '://' in str(text):
    raise ValueError(
      f'{what}: {text} is no folder of this machine. Only --workdir of train, check, evaluate and report may lie in a '
      'bucket.'
    )
  return Path(text).expanduser()


def is_remote(path: Place) -> bool:
  return not isinstance(path, Path)


def absolute(path: Place) -> Place:
  return path.absolute() if isinstance(path, Path) else path


def write_whole(file: Place, text: str) -> None:
  """A file that is there with all of its text, or as it was before."""
  if isinstance(file, Path):
    part = file.with_suffix('.part')
    part.write_text(text)
    part.rename(file)
  else:
    file.write_text(text)


def sizes(folder: Place) -> dict[str, int]:
  """The bytes of every file in a folder, by its name from there."""
  if isinstance(folder, Path):
    files = sorted(file for file in folder.rglob('*') if file.is_file())
    return {str(file.relative_to(folder)): file.stat().st_size for file in files}
  return {name: size for name, (size, _) in _objects(folder).items()}


def remove(folder: Place) -> None:
  """A folder with all that is in it, where there is one."""
  if isinstance(folder, Path):
    if folder.exists():
      shutil.rmtree(folder)
  elif folder.exists():
    folder.rmtree()


def create(file: Place, text: str) -> bool:
  """Writes a file of a bucket that is not there yet; False where somebody was first: one of several wins."""
  from fsspec.core import url_to_fs

  try:
    with url_to_fs(str(file))[0].open(str(file), 'xb') as stream:
      stream.write(text.encode())
  except FileExistsError:
    return False
  return True


def _objects(folder: Place) -> dict[str, tuple[int, str]]:
  """Bytes and generation of every object, by its name from the folder."""
  from fsspec.core import url_to_fs

  files, _ = url_to_fs(str(folder))
  found = files.find(str(folder), detail=True)
  begin = len(str(folder).removeprefix(REMOTE)) + 1
  return {
    name[begin:]: (int(each['size']), str(each.get('generation', '')))
    for name, each in sorted(found.items())
  }


def here(folder: str | os.PathLike) -> Path:
  """A folder of a bucket on this machine: copied once, and again when it has changed there."""
  there = place(folder)
  objects = _objects(there)
  if not objects:
    raise ValueError(f'{there} is not there, or is empty.')
  key = hashlib.sha256(repr((str(there), objects)).encode()).hexdigest()[:16]
  copy = cache_of_user() / 'buckets' / f'{there.name}-{key}'
  if not copy.is_dir():
    copy.parent.mkdir(parents=True, exist_ok=True)
    part = Path(tempfile.mkdtemp(prefix=f'{copy.name}-', dir=copy.parent))
    _copy(there, part, objects)
    try:
      part.rename(copy)
    except OSError:  # another process was first
      shutil.rmtree(part)
  return copy


def _copy(there: Place, folder: Path, names: Iterable[str]) -> None:
  for name in names:
    file = folder / name
    file.parent.mkdir(parents=True, exist_ok=True)
    with (there / name).open('rb') as source, open(file, 'wb') as target:
      shutil.copyfileobj(source, target, 2**22)


class Spool:
  """The files of a folder that grow: the folder itself, or for a bucket a folder of this machine that is sent.

  Args:
    home: where they belong.
    names: files of a bucket that are fetched first.
  """

  def __init__(self, home: Place, names: Iterable[str] = ()):
    self.home = home
    self._sent: dict[str, tuple[int, int]] = {}
    if isinstance(home, Path):
      self.folder = home
      return
    self.folder = Path(tempfile.mkdtemp(prefix='opd_spool_'))
    _copy(home, self.folder, [name for name in names if (home / name).is_file()])
    self._sent = self._stamps()

  def _stamps(self) -> dict[str, tuple[int, int]]:
    """Size and time of every file."""
    files = [file for file in self.folder.rglob('*') if file.is_file()]
    stats = {str(file.relative_to(self.folder)): file.stat() for file in files}
    return {name: (stat.st_size, stat.st_mtime_ns) for name, stat in stats.items()}

  def send(self) -> None:
    """Brings to a bucket what has changed; to a folder everything has gone already."""
    if isinstance(self.home, Path):
      return
    now = self._stamps()
    for name, stamp in now.items():
      if self._sent.get(name) != stamp:
        with open(self.folder / name, 'rb') as source, (self.home / name).open('wb') as target:
          shutil.copyfileobj(source, target, 2**22)
    self._sent = now

  def close(self) -> None:
    """Sends the rest, and tidies up."""
    self.send()
    if not isinstance(self.home, Path):
      shutil.rmtree(self.folder)


@contextlib.contextmanager
def spooled(home: Place, names: Iterable[str] = ()) -> Iterator[Spool]:
  """A spool for as long as it is written to."""
  spool = Spool(home, names)
  try:
    yield spool
  finally:
    spool.close()
