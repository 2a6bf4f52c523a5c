"""Floor 2. Published checkpoints in and out: a folder (or hub id) of safetensors <-> sharded parameters.

Everything is checked before the first byte of a tensor is read, and tensors then go one at a time from
the file into the shards where they will live: peak host memory is the largest tensor, not the model. Of several
processes each reads its share of every tensor.
"""

import collections
import dataclasses
import gc
import itertools
import json
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from opd_jax.models import transformer
from opd_jax.models.config import ModelConfig
from opd_jax.processes import to_host
from opd_jax.sharding import Layout
from opd_jax.storage import (
  atomic_folder,
  huggingface_config,
  hybrid_config,
  parameter_names,
  places,
  placing,
  safetensors,
)
from opd_jax.storage.hub import folder_of, some_of
from opd_jax.storage.places import Place
from opd_jax.storage.safetensors import Tensor
from opd_jax.types import Params

PICKLES = ('*.bin', '*.pt', '*.pth', '*.ckpt', '*.pkl')
INDEX = 'model.safetensors.index.json'
SAVED_DTYPES = {'float32': 'F32', 'float16': 'F16', 'bfloat16': 'BF16'}
Progress = Callable[[int, int, str], None]  # done, total, name of the tensor under way


def silent(done: int, total: int, name: str) -> None:
  """Reports no progress: the default of `load` and `save`."""


def tensors_of(folder: Path) -> dict[str, Tensor]:
  """Every tensor of a folder, from one file or from the shards that an index lists."""
  if (folder / INDEX).is_file():
    return _sharded_tensors(folder)
  files = sorted(folder.glob('*.safetensors'))
  if len(files) == 1:
    return safetensors.index(files[0])
  if files:
    raise ValueError(
      f'hub: {folder} has {len(files)} safetensors files and no {INDEX} that lists them. Download it too.'
    )
  pickles = sorted(file.name for pattern in PICKLES for file in folder.glob(pattern))
  if pickles:
    raise ValueError(
      f'hub: {folder} holds pickles only ({some_of(pickles)}). A pickle can run code, so it is never opened; '
      'save the model as safetensors first.'
    )
  raise ValueError(f'hub: {folder} has no *.safetensors file.')


def _sharded_tensors(folder: Path) -> dict[str, Tensor]:
  """Tensors of several files, each from the file that the index names."""
  try:
    weight_map = json.loads((folder / INDEX).read_text())['weight_map']
    files = sorted({str(file) for file in weight_map.values()})
  except (ValueError, KeyError, TypeError, AttributeError) as error:
    raise ValueError(
      f'hub: {folder / INDEX} is damaged ({type(error).__name__}: {error}): it should be an object with a '
      '"weight_map" from tensors to files. Download it again.'
    ) from error
  if absent := [file for file in files if not (folder / file).is_file()]:
    raise ValueError(
      f'hub: {folder} lacks the shards {", ".join(absent)} that its index lists. Download them again.'
    )
  by_file = {file: safetensors.index(folder / file) for file in files}
  if lost := sorted(name for name, file in weight_map.items() if name not in by_file[file]):
    raise ValueError(
      f'hub: the index of {folder} lists tensors that its shards do not hold: {some_of(lost)}.'
    )
  if stray := sorted(
    name for file in files for name in by_file[file] if weight_map.get(name) != file
  ):
    raise ValueError(
      f'hub: shards of {folder} hold tensors that its index places elsewhere or not at all: {some_of(stray)}. '
      'The folder mixes files of two exports; download them again.'
    )
  return {name: by_file[file][name] for name, file in weight_map.items()}


def _checked(
  pieces: list[parameter_names.Piece],
  tensors: dict[str, Tensor],
  *,
  config: ModelConfig,
  folder: Path,
) -> None:
  """Refuses missing, surplus, misshapen and mistyped tensors, all in one error."""
  expected = {piece.name: piece for piece in pieces}
  duplicate = config.tied and 'lm_head.weight' in tensors
  surplus = sorted(
    name
    for name in tensors.keys() - expected.keys()
    if not name.endswith('rotary_emb.inv_freq') and not (duplicate and name == 'lm_head.weight')
  )
  problems = []
  if missing := sorted(expected.keys() - tensors.keys()):
    problems.append(f'{len(missing)} missing: {some_of(missing)}')
  if surplus:
    problems.append(f'{len(surplus)} that this model does not have: {some_of(surplus)}')
  shared = [
    (tensors[name], expected[name].published_shape)
    for name in sorted(expected.keys() & tensors.keys())
  ]
  if bad := [f'{t.name} is {t.shape}, expected {shape}' for t, shape in shared if t.shape != shape]:
    problems.append(f'{len(bad)} of the wrong shape: {some_of(bad)}')
  if bad := [f'{t.name} is {t.dtype}' for t, _ in shared if t.dtype not in safetensors.DTYPES]:
    problems.append(
      f'{len(bad)} of a dtype other than {sorted(safetensors.DTYPES)}: {some_of(bad)}'
    )
  if problems:
    raise ValueError(
      f'hub: the tensors of {folder} do not fit its config.json: ' + '; '.join(problems) + '.'
    )
  if duplicate and _differ(tensors['lm_head.weight'], tensors['model.embed_tokens.weight']):
    raise ValueError(
      f'hub: {folder} says its embeddings are tied, yet lm_head.weight differs from model.embed_tokens.weight. '
      'Set tie_word_embeddings to false in config.json if the head is meant.'
    )


def _differ(first: Tensor, second: Tensor) -> bool:
  """Whether two tensors differ in any byte; reads a few megabytes at a time."""
  if (first.dtype, first.shape) != (second.dtype, second.shape):
    return True
  return any(not np.array_equal(a, b) for a, b in zip(first.pieces(), second.pieces(), strict=True))


def _stored_dtype(tensors: Iterable[Tensor], folder: Path) -> str:
  """Returns the one type of a checkpoint; refuses a mix, which only the user may round or widen."""
  by_type: dict[str, list[str]] = {}
  for tensor in tensors:
    by_type.setdefault(tensor.dtype, []).append(tensor.name)
  if len(by_type) > 1:
    groups = '; '.join(
      f'{kind}: {some_of(sorted(names), max_items=3)}' for kind, names in sorted(by_type.items())
    )
    raise ValueError(
      f'hub: {folder} mixes types ({groups}). Say which to store: --dtype, or param_dtype.'
    )
  return safetensors.DTYPES[next(iter(by_type))].name


def check_files(
  folder: Path, layout: Layout
) -> tuple[ModelConfig, list[parameter_names.Piece], dict[str, Tensor]]:
  """A checkpoint's settings, the tensors that they ask for, and those that are there; no weight is read."""
  config, tensors = huggingface_config.read(folder), tensors_of(folder)
  tensors = hybrid_config.of_text(tensors) if config.family == hybrid_config.FAMILY else tensors
  pieces = parameter_names.pieces(config, layout)
  _checked(pieces, tensors, config=config, folder=folder)
  return config, pieces, tensors


def load(
  source: str | Path,
  layout: Layout,
  *,
  param_dtype: str | None = None,
  progress: Progress = silent,
  **overrides,
) -> tuple[ModelConfig, Params]:
  """A published checkpoint as (config, parameters), sharded by `layout`.

  Args:
    source: a folder with config.json and safetensors, or a hub id.
    param_dtype: how to store the parameters; None keeps the type of the files.
    progress: called once per tensor.
    **overrides: other fields of `ModelConfig` that do not belong to the checkpoint: dtype (by default
      that of the parameters), remat, int8.
  """
  folder = folder_of(source)
  config, pieces, tensors = check_files(folder, layout)
  mixed = (tensors[piece.name] for piece in pieces if not piece.float32)
  param_dtype = param_dtype or _stored_dtype(mixed, folder)
  config = dataclasses.replace(
    config, **{'param_dtype': param_dtype, 'dtype': param_dtype, **overrides}
  )
  target = parameter_names.flat(transformer.abstract(config, layout))
  return config, placed(pieces, tensors, target, progress=progress)


def placed(
  pieces: Sequence[parameter_names.Piece],
  tensors: Mapping[str, Tensor],
  target: Mapping[str, jax.ShapeDtypeStruct],
  *,
  progress: Progress = silent,
) -> Params:
  """The parameters that these tensors fill, on their devices; what is stored as int8 becomes so tensor by tensor."""
  params: dict[str, jax.Array] = {}
  for number, piece in enumerate(pieces):
    progress(number, len(pieces), piece.name)
    for path, part in placing.parts_of(tensors[piece.name], piece, target).items():
      if piece.at:
        if path not in params:
          leaf = target[path]
          params[path] = jnp.zeros(leaf.shape, leaf.dtype, device=leaf.sharding)
        part = placing.into(params[path], part, tuple(map(np.int32, piece.at)))
      # Dispatch is asynchronous, and jax frees a host buffer only at a garbage collection: without these two
      # lines the host would hold every tensor that waits to be placed, and some that were.
      params[path] = jax.block_until_ready(part)
    gc.collect(0)
  progress(len(pieces), len(pieces), '')
  return parameter_names.nested(params)


def _on_host(array: jax.Array, at: tuple[int, ...]) -> np.ndarray:
  return np.asarray(to_host(array[at] if at else array))


def _shards(
  pieces: list[parameter_names.Piece], bytes_each: int, max_bytes: int
) -> Iterator[list[parameter_names.Piece]]:
  """Cuts the list where a file would grow beyond `max_bytes`."""
  shard, size = [], 0
  for piece in pieces:
    need = math.prod(piece.shape) * bytes_each
    if shard and size + need > max_bytes:
      yield shard
      shard, size = [], 0
    shard.append(piece)
    size += need
  yield shard


def save(
  destination: str | Place,
  config: ModelConfig,
  layout: Layout,
  params: Params,
  *,
  companions: Path | None = None,
  dtype: str | None = None,
  max_file_bytes: int = 5_000_000_000,
  progress: Progress = silent,
) -> None:
  """Writes a folder that `transformers` loads. It gets its name only when it is complete.

  Args:
    destination: a folder that does not exist yet, or an empty one.
    companions: a folder whose tokenizer and generation files are copied along.
    dtype: type of the saved tensors; None keeps that of the parameters.
    max_file_bytes: size at which a new shard begins.
  """
  destination = places.absolute(places.place(destination))
  dtype = dtype or config.param_dtype
  if dtype not in SAVED_DTYPES:
    raise ValueError(f'hub: cannot save as {dtype!r}; choose one of {sorted(SAVED_DTYPES)}.')
  pieces, arrays = parameter_names.pieces(config, layout), parameter_names.flat(params)
  saved = SAVED_DTYPES[dtype]
  kind = lambda piece: 'F32' if piece.float32 else saved
  shards = list(_shards(pieces, safetensors.DTYPES[saved].itemsize, max_file_bytes))
  total, done = len(pieces), itertools.count()

  def stream(shard: list[parameter_names.Piece]) -> Iterator[np.ndarray]:
    for piece in shard:
      progress(next(done), total, piece.name)
      host = piece.published(_on_host(arrays[piece.path], piece.at))
      yield host.astype(safetensors.DTYPES[kind(piece)], copy=False)

  with atomic_folder.fresh(destination) as folder:
    weight_map = {}
    for number, shard in enumerate(shards, start=1):
      name = f'model-{number:05d}-of-{len(shards):05d}.safetensors'
      name = 'model.safetensors' if len(shards) == 1 else name
      weight_map |= {piece.name: name for piece in shard}
      header = safetensors.header_of((p.name, kind(p), p.published_shape) for p in shard)
      if jax.process_index() == 0:
        safetensors.write(folder / name, header, stream(shard))
      else:  # takes part in gathering parameters that are sharded over hosts
        collections.deque(stream(shard), maxlen=0)
    if jax.process_index() == 0:
      _write_json(folder / 'config.json', huggingface_config.write(config, dtype=dtype))
      if len(shards) > 1:
        size = sum(math.prod(p.shape) * safetensors.DTYPES[kind(p)].itemsize for p in pieces)
        _write_json(folder / INDEX, {'metadata': {'total_size': size}, 'weight_map': weight_map})
    atomic_folder.copy_companions(companions, folder)
  progress(total, total, '')


def _write_json(file: Place, content: Mapping) -> None:
  file.write_text(json.dumps(content, indent=2) + '\n')
