"""Floor 6. Loads a model by its name, with the tokenizer from its folder."""

import sys
from typing import Any

from opd_jax.commands import console


def with_tokenizer(
  name: str,
  *,
  seed: int,
  dtype: str | None,
  everywhere: bool = False,
  layout: Any = None,
) -> tuple[Any, Any, Any]:
  """Returns the model (`load.Loaded`), its tokenizer (bytes for a preset, None where absent), and its layout.

  Args:
    name: of the model.
    seed: of a preset's weights.
    dtype: of parameters and activations; None leaves them as they are stored.
    everywhere: a copy on each device of all processes, which share the rows; else one device of this process.
    layout: where its weights lie, instead.
  """
  import jax

  from opd_jax import programs
  from opd_jax.data.tokenizers import FILES, ByteTokenizer, HubTokenizer
  from opd_jax.sharding import mesh_layout
  from opd_jax.storage import load

  programs.keep(lambda text: print(text, file=sys.stderr))
  one = (jax.local_devices()[0],)
  if layout is None:
    layout = mesh_layout(data=-1) if everywhere else mesh_layout(devices=one)
  types = {} if dtype is None else {'param_dtype': dtype, 'dtype': dtype}
  with console.progress_bar('reading') as progress:
    loaded = load.model(name, layout, seed=seed, progress=progress, **types)
  if loaded.folder is None:
    return loaded, ByteTokenizer(), layout
  if not any((loaded.folder / file).is_file() for file in FILES):
    return loaded, None, layout
  tokenizer = HubTokenizer(loaded.folder)
  if (tokens := len(tokenizer.strings())) > loaded.config.vocab_size:
    raise ValueError(
      f'{name}: its tokenizer has {tokens} tokens, the model only {loaded.config.vocab_size} rows; '
      'they do not belong together.'
    )
  return loaded, tokenizer, layout
