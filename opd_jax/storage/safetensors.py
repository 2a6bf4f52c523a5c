"""Floor 2. The safetensors file format: one header, then raw bytes; read and written a tensor at a time.

The published package maps a whole file or returns copies. Here a tensor is read into exactly one buffer of its
own size (`huggingface.py` promises its peak memory), and writing a file holds one tensor at a time.
`huggingface_test.py` reads our files with the published package and back.
"""

import dataclasses
import json
import math
import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from opd_jax.storage.places import Place

DTYPES = {
  'F32': np.dtype('float32'),
  'F16': np.dtype('float16'),
  'BF16': np.dtype(ml_dtypes.bfloat16),
}
_MAX_HEADER_BYTES = 100_000_000


@dataclasses.dataclass(frozen=True, kw_only=True)
class Tensor:
  """The place of one tensor in a file."""

  name: str
  file: Path
  dtype: str
  shape: tuple[int, ...]
  offset: int

  def read(self) -> np.ndarray:
    flat = np.fromfile(
      self.file, dtype=DTYPES[self.dtype], count=math.prod(self.shape), offset=self.offset
    )
    return flat.reshape(self.shape)

  def rows(self, begin: int, end: int) -> np.ndarray:
    """Some of its rows; no other byte is read."""
    one = math.prod(self.shape[1:])
    kind = DTYPES[self.dtype]
    flat = np.fromfile(
      self.file,
      dtype=kind,
      count=(end - begin) * one,
      offset=self.offset + begin * one * kind.itemsize,
    )
    return flat.reshape(end - begin, *self.shape[1:])

  def pieces(self, most: int = 4 * 2**20) -> Iterator[np.ndarray]:
    """The raw bytes, a few megabytes at a time."""
    size = math.prod(self.shape) * DTYPES[self.dtype].itemsize
    for begin in range(0, size, most):
      yield np.fromfile(
        self.file, np.uint8, count=min(most, size - begin), offset=self.offset + begin
      )


def index(file: Path) -> dict[str, Tensor]:
  """Every tensor of one file, after checking that the file holds all the bytes its header promises."""
  size = file.stat().st_size
  with file.open('rb') as stream:
    length = int.from_bytes(stream.read(8), 'little') if size >= 8 else _MAX_HEADER_BYTES + 1
    if length > min(size - 8, _MAX_HEADER_BYTES):
      raise ValueError(
        _broken(file, f'its header should be {length} bytes long, the file has {size}')
      )
    try:
      header = json.loads(stream.read(length))
      header.pop('__metadata__', None)
      tensors = {name: _tensor(name, file, entry, length + 8) for name, entry in header.items()}
      ends = [length + 8 + entry['data_offsets'][1] for entry in header.values()]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
      raise ValueError(_broken(file, f'its header cannot be read ({error})')) from error
  if max(ends, default=0) > size:
    raise ValueError(_broken(file, f'its tensors need {max(ends)} bytes, the file has {size}'))
  return tensors


def _broken(file: Path, what: str) -> str:
  return f'safetensors: {file} is truncated or damaged: {what}. Download or export it again.'


def _tensor(name: str, file: Path, entry: Mapping[str, Any], start: int) -> Tensor:
  begin, end = entry['data_offsets']
  shape = tuple(entry['shape'])
  dtype = DTYPES.get(entry['dtype'])
  if dtype is not None and end - begin != math.prod(shape) * dtype.itemsize:
    raise ValueError(f'{name}: {end - begin} bytes for shape {shape} of {entry["dtype"]}')
  return Tensor(name=name, file=file, dtype=entry['dtype'], shape=shape, offset=start + begin)


def header_of(entries: Iterable[tuple[str, str, tuple[int, ...]]]) -> bytes:
  """The header of a file with these (name, dtype, shape), in this order, padded to eight bytes."""
  header: dict[str, Any] = {'__metadata__': {'format': 'pt'}}
  offset = 0
  for name, dtype, shape in entries:
    end = offset + math.prod(shape) * DTYPES[dtype].itemsize
    header[name] = {'dtype': dtype, 'shape': list(shape), 'data_offsets': [offset, end]}
    offset = end
  text = json.dumps(header, separators=(',', ':')).encode()
  text += b' ' * (-len(text) % 8)
  return len(text).to_bytes(8, 'little') + text


def write(file: Place, header: bytes, arrays: Iterable[np.ndarray]) -> None:
  """Writes the header, then one array after the other; a file of this machine is synced to its disk."""
  with file.open('wb') as stream:
    stream.write(header)
    for array in arrays:
      stream.write(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)
    if isinstance(file, Path):
      stream.flush()
      os.fsync(stream.fileno())
