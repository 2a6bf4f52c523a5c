"""Floor 2. One name for any model: a preset, one of our folders, a published folder or a hub id."""

from pathlib import Path
from typing import Any, NamedTuple

import jax

from opd_jax.models import presets, transformer
from opd_jax.models.config import ModelConfig
from opd_jax.sharding import Layout
from opd_jax.storage import huggingface, orbax_folder
from opd_jax.types import Params


class Loaded(NamedTuple):
  config: ModelConfig
  params: Params
  folder: Path | None  # where its tokenizer lies; None for a preset, which has none


def model(
  source: str,
  layout: Layout,
  *,
  seed: int = 0,
  progress: huggingface.Progress = huggingface.silent,
  **overrides: Any,
) -> Loaded:
  """The model that `source` names, on `layout`; a preset gets random weights from `seed`.

  Overrides are fields of `ModelConfig` that are no part of a checkpoint: param_dtype, dtype, remat.
  """
  if 'param_dtype' in overrides:  # activations follow the parameters unless something else is said
    overrides.setdefault('dtype', overrides['param_dtype'])
  known = presets.every()
  if source in known and not Path(source).exists():
    config = known[source](**overrides)
    return Loaded(config, transformer.init(config, layout, jax.random.key(seed)), None)
  if '/' not in source and not Path(source).expanduser().exists():
    raise ValueError(
      f'model: {source!r} is neither a folder nor a preset. Presets: {", ".join(known)}. '
      'A hub id has the form owner/name.'
    )
  folder = huggingface.folder_of(source)
  if orbax_folder.is_native(folder):
    return Loaded(*orbax_folder.load(folder, layout, **overrides), folder)
  return Loaded(*huggingface.load(folder, layout, progress=progress, **overrides), folder)
