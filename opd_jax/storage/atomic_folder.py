"""Floor 2. Model folders and files appear whole or not at all; models carry their tokenizer with them."""

import contextlib
import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import jax
from jax.experimental import multihost_utils

from opd_jax.storage import places
from opd_jax.storage.places import Place, write_whole

# Files that are copied beside the weights.
COMPANIONS = (
  'tokenizer*', 'vocab.json', 'vocab.txt', 'merges.txt', 'special_tokens_map.json', 'added_tokens.json',
  'chat_template*', 'generation_config.json',
)  # fmt: skip
SETTINGS = 'tokenizer_config.json'


@contextlib.contextmanager
def fresh(destination: Place) -> Iterator[Place]:
  """Yields a temporary folder; renames it to `destination` when the block succeeds, removes it when it fails.

  A bucket has no rename: there the folder itself is written, and whoever writes puts the file last by which a reader
  knows it.
  """
  if isinstance(destination, Path):
    with _renamed(destination) as folder:
      yield folder
    return
  if places.sizes(destination):
    raise ValueError(
      f'{destination} exists and is not empty. Choose another destination or remove it.'
    )
  _barrier(f'begin {destination.name}')
  try:
    yield destination
  except BaseException:
    if jax.process_index() == 0:
      places.remove(destination)
    raise
  _barrier(f'end {destination.name}')


@contextlib.contextmanager
def _renamed(destination: Path) -> Iterator[Path]:
  if destination.exists() and (not destination.is_dir() or any(destination.iterdir())):
    raise ValueError(
      f'{destination} exists and is not an empty folder. Choose another destination or remove it.'
    )
  partial = destination.with_name(f'.{destination.name}.partial')
  first = jax.process_index() == 0
  if first:
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
  _barrier(f'begin {destination.name}')
  try:
    yield partial
    _barrier(f'end {destination.name}')
    if first:
      if destination.exists():
        destination.rmdir()
      partial.rename(destination)
    _barrier(f'named {destination.name}')  # no process may look for the folder before the rename
  finally:
    if first:
      shutil.rmtree(partial, ignore_errors=True)


def _barrier(name: str) -> None:
  if jax.process_count() > 1:
    multihost_utils.sync_global_devices(name)


def copy_companions(source: Path | None, destination: Place) -> None:
  """Copies tokenizer, chat template and generation settings beside the weights, on the first process only."""
  if source is None or jax.process_index() != 0:
    return
  for file in (file for pattern in COMPANIONS for file in source.glob(pattern) if file.is_file()):
    (destination / file.name).write_bytes(file.read_bytes())
  if (source / 'config.json').is_file():
    _pin_tokenizer(source, destination)


def _pin_tokenizer(source: Path, destination: Place) -> None:
  """Names the tokenizer's class, where transformers reads it off a config.json that is not copied.

  Another class may cut text otherwise with the same strings, so nothing else would tell.
  """
  settings = destination / SETTINGS
  if not settings.is_file():
    return
  import transformers  # seconds to import: only for those who use it

  try:
    used = type(transformers.AutoTokenizer.from_pretrained(str(source), trust_remote_code=False))
  except Exception:  # of foreign code, or damaged: nobody can have used it
    return
  known = json.loads(settings.read_text())
  if known.get('tokenizer_class') != used.__name__:
    write_whole(settings, json.dumps({**known, 'tokenizer_class': used.__name__}, indent=2) + '\n')
