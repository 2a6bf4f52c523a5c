"""Floor 2. One name for any model: a preset, one of our folders, a published folder or a hub id."""

import dataclasses
import json
from pathlib import Path
from typing import Any, NamedTuple

import jax

from opd_jax.data import tokenizers
from opd_jax.data.tokenizers import HubTokenizer
from opd_jax.models import int8, presets, transformer
from opd_jax.models.config import ModelConfig
from opd_jax.sharding import Layout
from opd_jax.storage import hub, huggingface, huggingface_config, orbax_folder, peft
from opd_jax.types import Params


class Loaded(NamedTuple):
  config: ModelConfig
  params: Params
  folder: Path | None  # has its tokenizer; None for a preset, which has none


def model(
  source: str,
  layout: Layout,
  *,
  seed: int = 0,
  progress: huggingface.Progress = huggingface.silent,
  **overrides: Any,
) -> Loaded:
  """The model that `source` names, on `layout`; a preset gets random weights from `seed`.

  Overrides are fields of `ModelConfig` that a checkpoint does not fix: param_dtype, dtype, remat, int8. A
  published folder becomes int8 tensor by tensor, so it is never there in its own type.
  """
  if 'param_dtype' in overrides:  # activations have the parameters' type unless dtype is given
    overrides.setdefault('dtype', overrides['param_dtype'])
  if overrides.get('int8') and not is_published(source):
    whole = model(source, layout, seed=seed, progress=progress, **{**overrides, 'int8': False})
    config = dataclasses.replace(whole.config, int8=True)
    stored = int8.converted(dict(whole.params), transformer.abstract(config, layout))
    return Loaded(config, stored, whole.folder)
  if is_preset(source):
    config = presets.every()[source](**overrides)
    return Loaded(config, transformer.init(config, layout, jax.random.key(seed)), None)
  folder = folder_of(source)
  if peft.is_adapter(folder):
    base = model(peft.base_of(folder), layout, seed=seed, progress=progress, **overrides)
    params = peft.load(folder, base.config, layout, base.params)
    return Loaded(base.config, params, folder if _has_tokenizer(folder) else base.folder)
  if orbax_folder.is_native(folder):
    return Loaded(*orbax_folder.load(folder, layout, **overrides), folder)
  return Loaded(*huggingface.load(folder, layout, progress=progress, **overrides), folder)


def is_preset(source: str) -> bool:
  """Whether the name means a preset; a folder of that name takes precedence."""
  return source in presets.every() and not Path(source).exists()


def is_published(source: str) -> bool:
  """Whether the name means a folder of safetensors that holds a whole model."""
  if is_preset(source):
    return False
  folder = folder_of(source)
  return not peft.is_adapter(folder) and not orbax_folder.is_native(folder)


def folder_of(source: str) -> Path:
  """The folder of a model that is no preset; a hub id is downloaded."""
  if not isinstance(source, str) or not source.strip():
    raise ValueError(f'model: the name of a folder, hub id or preset is expected, got {source!r}.')
  if '/' not in source and not Path(source).expanduser().exists():
    raise ValueError(
      f'model: {source!r} is neither a folder nor a preset. Presets: {", ".join(presets.every())}. '
      'A hub id has the form owner/name.'
    )
  return hub.folder_of(source)


def config_of(source: str) -> ModelConfig:
  """The settings of a model, without its weights."""
  if is_preset(source):
    return presets.every()[source]()
  folder = folder_of(source)
  if peft.is_adapter(folder):
    return config_of(peft.base_of(folder))
  if orbax_folder.is_native(folder):
    return orbax_folder.read_config(folder)
  return huggingface_config.read(folder)


def config(
  source: str, *, param_dtype: str = 'float32', dtype: str = 'bfloat16', remat: str = 'none'
) -> ModelConfig:
  """The settings of a student, read from its folder.

  Args:
    source: a folder, hub id or preset.
    param_dtype: of the masters.
    dtype: what is computed in.
    remat: what backward computes again: 'none', 'dots', 'full' or 'offload'.
  """
  if not isinstance(source, str):
    raise ValueError(f"model: a folder or hub id is wanted, got {source!r}. Bind WEIGHTS = '…'.")
  types = {'param_dtype': param_dtype, 'dtype': dtype, 'remat': remat}
  return dataclasses.replace(config_of(source), **types)


def strings_of(source: str) -> tuple[str | None, ...] | None:
  """Returns the string of every token id of a model; None where no file beside the weights lists them."""
  if is_preset(source):
    return None
  folder = folder_of(source)
  stored = folder / orbax_folder.VOCABULARY
  if stored.is_file():
    try:
      return tuple(json.loads(stored.read_text()))
    except ValueError as error:
      raise ValueError(
        f'model: {stored} cannot be read ({error}). Save the model again.'
      ) from error
  found = tokenizer_of(source)
  return None if found is None else found.strings()


def tokenizer_of(source: str) -> HubTokenizer | None:
  """The tokenizer whose files lie beside the weights of a model, or beside those under an adapter."""
  if is_preset(source):
    return None
  folder = folder_of(source)
  if _has_tokenizer(folder):
    return HubTokenizer(folder)
  return tokenizer_of(peft.base_of(folder)) if peft.is_adapter(folder) else None


def _has_tokenizer(folder: Path) -> bool:
  return any((folder / file).is_file() for file in tokenizers.FILES)


def check_files(source: str, layout: Layout) -> None:
  """Refuses a model whose files are missing, truncated, or do not fit its settings, without reading a weight."""
  if is_preset(source):
    return
  folder = folder_of(source)
  if peft.is_adapter(folder):
    check_files(peft.base_of(folder), layout)
  elif orbax_folder.is_native(folder):
    orbax_folder.check_files(folder)
  else:
    huggingface.check_files(folder, layout)
