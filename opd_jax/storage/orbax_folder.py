"""Floor 2. Our own model folder: `opd.json` (the config), `params/` (orbax), `vocabulary.json` (the string of every
token id) and the tokenizer's files.

Unlike a published folder it loads sharded, in parallel, on any layout, without a name table.
"""

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path

import jax
import orbax.checkpoint as ocp

from opd_jax.models import transformer
from opd_jax.models.config import Delta, Experts, ModelConfig, RopeScaling
from opd_jax.processes import blank, everywhere, placed, to_host
from opd_jax.sharding import Layout
from opd_jax.storage import atomic_folder, parameter_names, places
from opd_jax.storage.places import Place
from opd_jax.types import Params

MARK = 'opd.json'
VOCABULARY = 'vocabulary.json'
FORMAT = 1


def is_native(folder: Path) -> bool:
  return (folder / MARK).is_file()


def save(
  destination: str | Place,
  config: ModelConfig,
  params: Params,
  *,
  strings: Sequence[str | None] | None = None,
  companions: Path | None = None,
) -> None:
  """Writes the folder; it gets its name only when it is complete.

  Args:
    destination: the folder to make.
    config, params: the model.
    strings: the string of every token id; a student that this model judges compares them with its own.
    companions: a folder whose tokenizer files are copied.
  """
  with atomic_folder.fresh(places.absolute(places.place(destination))) as folder:
    with ocp.StandardCheckpointer() as checkpointer:
      checkpointer.save(folder / 'params', params if everywhere(params) else to_host(params))
    if jax.process_index() == 0 and strings is not None:
      (folder / VOCABULARY).write_text(json.dumps(list(strings)) + '\n')
    atomic_folder.copy_companions(companions, folder)
    if jax.process_index() == 0:
      fields = dataclasses.asdict(config)
      assert fields.pop('lora') is None  # adapters are merged before
      record = {
        'format': FORMAT,
        'model': fields,
        'shapes': {path: list(leaf.shape) for path, leaf in parameter_names.flat(params).items()},
        'files': _files(folder),
      }
      (folder / MARK).write_text(json.dumps(record, indent=2) + '\n')  # last: it makes the folder


def _files(folder: Place) -> dict[str, int]:
  """Name and size of everything orbax wrote."""
  return {f'params/{name}': size for name, size in places.sizes(folder / 'params').items()}


def check_files(folder: Path) -> dict[str, list[int]]:
  """Returns the shapes that the folder declares; refuses missing and truncated files by name.

  Orbax reports a missing file late and at length, so sizes are compared first.
  """
  record = json.loads((folder / MARK).read_text())
  declared, shapes, stored = record.get('files'), record.get('shapes'), _files(folder)
  if not declared or not shapes:
    raise ValueError(
      f'native: {folder / MARK} does not list the files and shapes of the model. Convert it again.'
    )
  if bad := sorted(name for name, size in declared.items() if stored.get(name) != size):
    raise ValueError(
      f'native: {folder} is damaged: {len(bad)} of {len(declared)} files are missing or truncated, e.g. {bad[0]}. '
      'Convert or copy the model again.'
    )
  return shapes


def _check(folder: Path, target: Params) -> None:
  shapes = check_files(folder)
  expected = {path: list(leaf.shape) for path, leaf in parameter_names.flat(target).items()}
  if bad := sorted(
    path for path in shapes.keys() | expected.keys() if shapes.get(path) != expected.get(path)
  ):
    raise ValueError(
      f'native: the parameters in {folder} do not fit the model that its {MARK} describes: {bad[0]} is '
      f'{shapes.get(bad[0])}, expected {expected.get(bad[0])} (and {len(bad) - 1} more). Convert the model again.'
    )


def read_config(folder: Path) -> ModelConfig:
  """The `ModelConfig` of one of our folders."""
  try:
    record = json.loads((folder / MARK).read_text())
    if record['format'] != FORMAT:
      raise ValueError(f'format {record["format"]}, this version reads format {FORMAT}')
    fields = record['model']
    fields['end_tokens'] = tuple(fields['end_tokens'])
    for name, kind in (('rope_scaling', RopeScaling), ('experts', Experts), ('delta', Delta)):
      if fields.get(name) is not None:
        fields[name] = kind(**fields[name])
    return ModelConfig(**fields)
  except (ValueError, KeyError, TypeError) as error:
    raise ValueError(
      f'native: {folder / MARK} cannot be read ({error}). Convert the model again.'
    ) from error


def load(
  folder: str | Path, layout: Layout, *, param_dtype: str | None = None, **overrides
) -> tuple[ModelConfig, Params]:
  """Loads (config, parameters) of one of our folders directly into the shards of `layout`."""
  folder = Path(folder).absolute()
  saved = read_config(folder)
  config = dataclasses.replace(saved, param_dtype=param_dtype or saved.param_dtype, **overrides)
  target = transformer.abstract(config, layout)
  _check(folder, target)
  try:
    with ocp.StandardCheckpointer() as checkpointer:
      if everywhere(target):
        return config, checkpointer.restore(folder / 'params', target)
      # Orbax asks every process for a device of every array.
      whole = checkpointer.restore(folder / 'params', blank(target))
    return config, placed(whole, jax.tree.map(lambda leaf: leaf.sharding, target))
  except Exception as error:  # orbax and tensorstore raise many types; a user can act on one
    raise ValueError(
      f'native: the parameters in {folder} are damaged ({type(error).__name__}: '
      f'{str(error).splitlines()[0][:200]}). Convert the model again.'
    ) from error
