"""Floor 2. PEFT's folder of an adapter: adapter_config.json and adapter_model.safetensors, in and out.

Such a folder names the model that it belongs to. Experts are named one by one, as published folders store them.
"""

import itertools
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from opd_jax.models import adapters
from opd_jax.models.config import ModelConfig
from opd_jax.models.lora import ADAPTER, TARGETS, Lora
from opd_jax.processes import to_host
from opd_jax.sharding import Layout
from opd_jax.storage import atomic_folder, parameter_names, places, safetensors
from opd_jax.storage.hub import some_of
from opd_jax.storage.parameter_names import Piece
from opd_jax.storage.places import Place
from opd_jax.types import Params

SETTINGS, TENSORS = 'adapter_config.json', 'adapter_model.safetensors'
PREFIX = 'base_model.model.'
STORED = {'float32': 'F32', 'float16': 'F16', 'bfloat16': 'BF16'}
# Fields of PEFT that change what an adapter computes, and the values that leave it as it is here.
PLAIN: dict[str, tuple[Any, ...]] = {
  'peft_type': ('LORA',),
  'bias': ('none',),
  'use_rslora': (None, False),
  'use_dora': (None, False),
  'fan_in_fan_out': (None, False),
  'modules_to_save': (None, []),
  'layers_to_transform': (None, []),
  'rank_pattern': (None, {}),
  'alpha_pattern': (None, {}),
  'target_parameters': (None, []),
}


def is_adapter(folder: Path) -> bool:
  return (folder / SETTINGS).is_file()


def _settings(folder: Path) -> dict[str, Any]:
  try:
    return dict(json.loads((folder / SETTINGS).read_text()))
  except (ValueError, TypeError) as error:
    raise ValueError(
      f'peft: {folder / SETTINGS} cannot be read ({error}). Download or export the adapter again.'
    ) from error


def base_of(folder: Path) -> str:
  """The name of the model that an adapter belongs to."""
  base = _settings(folder).get('base_model_name_or_path')
  if not base:
    raise ValueError(
      f'peft: the adapter in {folder} names no base: base_model_name_or_path of its {SETTINGS} is empty. Write the '
      'folder or hub id of the model into it that the adapter was trained beside.'
    )
  return str(base)


def lora_of(folder: Path) -> Lora:
  """The settings of an adapter; what this library would compute otherwise is refused."""
  settings = _settings(folder)
  odd = [name for name, plain in PLAIN.items() if settings.get(name, plain[0]) not in plain]
  if odd:
    listed = ', '.join(f'{name}={settings[name]!r}' for name in odd)
    raise ValueError(
      f'peft: the adapter in {folder} has {listed}, which is not supported. Merge it with peft and load the result.'
    )
  targets = settings.get('target_modules')
  if not isinstance(targets, list) or (unknown := [x for x in targets if x not in TARGETS]):
    shown = targets if not isinstance(targets, list) else unknown
    raise ValueError(
      f'peft: the adapter in {folder} has target_modules {shown!r}; a list of {", ".join(TARGETS)} can be loaded. '
      'Merge it with peft and load the result.'
    )
  try:
    return Lora(rank=settings['r'], alpha=settings['lora_alpha'], targets=tuple(sorted(targets)))
  except KeyError as error:
    raise ValueError(f'peft: {folder / SETTINGS} has no {error}. Export it again.') from error


def _pieces(config: ModelConfig, layout: Layout, lora: Lora) -> list[Piece]:
  """The published tensors that have an adapter."""
  pieces = parameter_names.pieces(adapters.plain(config), layout)
  return [p for p in pieces if p.inputs and lora.adapts(p.path.rpartition('/')[2])]


def _named(piece: Piece, side: str) -> str:
  return f'{PREFIX}{piece.name.removesuffix(".weight")}.lora_{side}.weight'


def _shapes(piece: Piece, rank: int) -> dict[str, tuple[int, int]]:
  outputs, inputs = piece.published_shape
  return {'A': (rank, inputs), 'B': (outputs, rank)}


def save(
  destination: Place,
  config: ModelConfig,
  layout: Layout,
  trained: Params,
  *,
  base: str | None,
  companions: Path | None = None,
) -> None:
  """Writes adapters as a folder that PEFT loads.

  Args:
    config: of the model with LoRA.
    trained: its adapters.
    base: the name of the model beside which they were trained; None where it was drawn at random.
    companions: a folder whose tokenizer files are copied along.
  """
  lora = config.lora
  assert lora is not None
  arrays = parameter_names.flat(to_host(trained))

  def tensors() -> Iterator[tuple[str, np.ndarray]]:
    for piece in _pieces(config, layout, lora):
      for side, shape in _shapes(piece, lora.rank).items():
        part = np.asarray(arrays[f'{piece.path}{ADAPTER}/{side}'])[piece.at]
        yield _named(piece, side), part.reshape(shape[::-1]).T

  settings = {
    'peft_type': 'LORA',
    'task_type': 'CAUSAL_LM',
    'base_model_name_or_path': base,
    'r': lora.rank,
    'lora_alpha': lora.alpha,
    'lora_dropout': 0.0,
    'target_modules': list(lora.targets),
    'bias': 'none',
    'fan_in_fan_out': False,
    'inference_mode': True,
  }
  _write(destination, settings, dict(tensors()), 'float32', companions)


def _write(
  destination: Place,
  settings: dict[str, Any],
  tensors: dict[str, np.ndarray],
  dtype: str,
  companions: Path | None,
) -> None:
  kind = STORED[dtype]
  with atomic_folder.fresh(places.absolute(destination)) as folder:
    if jax.process_index() == 0:
      header = safetensors.header_of((name, kind, x.shape) for name, x in tensors.items())
      arrays = (x.astype(safetensors.DTYPES[kind]) for x in tensors.values())
      safetensors.write(folder / TENSORS, header, arrays)
    atomic_folder.copy_companions(companions, folder)
    if jax.process_index() == 0:  # last: it makes the folder
      (folder / SETTINGS).write_text(json.dumps(settings, indent=2) + '\n')


def copy(source: Path, destination: Path, *, dtype: str | None) -> int:
  """Copies an adapter's folder, its tensors as `dtype`; returns how many there are."""
  tensors = {name: tensor.read() for name, tensor in safetensors.index(source / TENSORS).items()}
  _write(destination, _settings(source), tensors, dtype or 'float32', source)
  return len(tensors)


def load(folder: Path, config: ModelConfig, layout: Layout, params: Params) -> Params:
  """The parameters of a model with an adapter merged into them.

  Args:
    folder: of the adapter.
    config, params: of the model that it belongs to.
  """
  lora = lora_of(folder)
  student = adapters.with_lora(config, lora)
  trained = _read(folder, student, layout, lora)
  return adapters.merged(student, layout, adapters.joined(params, trained), config)


def _read(folder: Path, config: ModelConfig, layout: Layout, lora: Lora) -> Params:
  """The adapters of a folder, laid out beside their weights; all that does not fit is one error."""
  # Beside a model that sees, the text model's layers have a longer name.
  stored = {
    name.replace('.language_model.', '.'): tensor
    for name, tensor in safetensors.index(folder / TENSORS).items()
  }
  pieces = _pieces(config, layout, lora)
  wanted = {
    _named(piece, side): shape
    for piece in pieces
    for side, shape in _shapes(piece, lora.rank).items()
  }
  problems = []
  if missing := sorted(wanted.keys() - stored.keys()):
    problems.append(f'{len(missing)} missing: {some_of(missing)}')
  if surplus := sorted(stored.keys() - wanted.keys()):
    problems.append(f'{len(surplus)} that belong to nothing: {some_of(surplus)}')
  here = sorted(wanted.keys() & stored.keys())
  if bad := [
    f'{name} is {stored[name].shape}, expected {wanted[name]}'
    for name in here
    if stored[name].shape != wanted[name]
  ]:
    problems.append(f'{len(bad)} of the wrong shape: {some_of(bad)}')
  if problems:
    raise ValueError(
      f'peft: the adapter in {folder} does not fit its base {base_of(folder)}: {"; ".join(problems)}. Name the base '
      f'that it was trained beside in its {SETTINGS}.'
    )
  leaves = parameter_names.flat(adapters.trained(config, layout))
  arrays = {path: np.zeros(leaf.shape, np.float32) for path, leaf in leaves.items()}
  for piece, side in itertools.product(pieces, ('A', 'B')):
    slot = arrays[f'{piece.path}{ADAPTER}/{side}'][piece.at]
    slot[...] = stored[_named(piece, side)].read().astype(np.float32).T.reshape(slot.shape)
  placed = {path: jax.device_put(x, leaves[path].sharding) for path, x in arrays.items()}
  return parameter_names.nested(jax.tree.map(jnp.asarray, placed))
