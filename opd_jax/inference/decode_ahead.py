"""Floor 2. Programs of the sampler, lowered from shapes: slots are halved, and their room grows."""

import functools
from collections.abc import Callable, Iterator

import jax
import numpy as np
from jax.stages import Lowered

from opd_jax.inference import decode_programs, prompt_reader
from opd_jax.inference.buckets import LEAST_ROOM, most_columns, rooms, sizes_of
from opd_jax.inference.decode_programs import Slots
from opd_jax.inference.sampler import Model, Sampling

Lowering = tuple[str, float, Callable[[], Lowered]]  # its name, its calls for a batch, and itself


def programs(model: Model, sampling: Sampling, *, rows: int, longest: int) -> Iterator[Lowering]:
  """The decoding programs, in the order in which a batch is likely to need them.

  Args:
    model: unrolled; its parameters may be shapes.
    sampling: of the batch.
    rows: of the batch.
    longest: tokens of the longest prompt.
  """
  sizes = sizes_of(min(sampling.slots, rows), pieces=model.layout.size('batch'))
  empty = _empty_slots(model, sampling, sizes[0])
  for columns in columns_of(sampling, longest, model.config.max_positions):
    for number, size in enumerate(sizes):
      if number:
        halve = functools.partial(_halve, model, empty(sizes[number - 1], columns), size, columns)
        yield f'halve {sizes[number - 1]} slots x {columns}', 1.0, halve
      yield from _decoded(model, sampling, empty(size, columns), rows)


def widest(model: Model, sampling: Sampling, *, rows: int, longest: int) -> Iterator[Lowering]:
  """Reading of the longest prompts, and decoding where every slot has all of its room."""
  pieces, chunk = model.layout.size('batch'), sampling.chunk
  columns = prompt_reader.width_of(longest, chunk, model.config.max_positions)
  size = sizes_of(min(sampling.slots, rows), pieces=pieces)[0]
  array = lambda *shape: jax.ShapeDtypeStruct(shape, np.int32)
  read = functools.partial(
    decode_programs.prefill.lower,
    (model.params,),
    array(size, columns),
    array(size),
    specs=((model.config, model.layout),),
    chunk=min(chunk, columns),
  )
  yield f'prefill {size} x {columns}', rows / size, read
  room = columns_of(sampling, longest, model.config.max_positions)[-1]
  yield from _decoded(model, sampling, _empty_slots(model, sampling, size)(size, room), rows)


def _decoded(model: Model, sampling: Sampling, slots: Slots, rows: int) -> Iterator[Lowering]:
  size, columns = slots.ended.shape[0], slots.caches[0].columns
  calls = max(rows / size, 1) * sampling.budget / sampling.segment
  decode = functools.partial(_decode, model, sampling, slots)
  yield f'decode {size} slots x {columns}, {sampling.segment} tokens', calls, decode


def columns_of(sampling: Sampling, longest: int, table: int) -> list[int]:
  """How much room the slots have, from the first segment to the end of the budget."""
  width = prompt_reader.width_of(longest, sampling.chunk, table)
  first = max(longest + min(sampling.segment, sampling.budget), width)
  most = most_columns(max(longest + sampling.budget, width), table)
  return [each for each in rooms(most) if each >= min(first, most)]


def _empty_slots(model: Model, sampling: Sampling, rows: int) -> Callable[[int, int], Slots]:
  """Shapes of slots; they lie where those of the first batch lie."""
  settings = {'specs': ((model.config, model.layout),), 'window': sampling.decoding.window}
  made = decode_programs.vacant.lower(rows=rows, columns=LEAST_ROOM, **settings).compile()

  def empty(size: int, columns: int) -> Slots:
    make = functools.partial(decode_programs.vacant, rows=size, columns=columns, **settings)
    like = lambda x, place: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=place)
    return jax.tree.map(like, jax.eval_shape(make), made.output_shardings)

  return empty


def _halve(model: Model, slots: Slots, size: int, columns: int) -> Lowered:
  kept = jax.ShapeDtypeStruct((size,), np.int32)
  specs = ((model.config, model.layout),)
  return decode_programs.reshaped.lower(slots, kept, specs=specs, columns=columns)


def _decode(model: Model, sampling: Sampling, slots: Slots) -> Lowered:
  numbers = sampling.decoding.numbers_at(0)
  return decode_programs.decode.lower(
    (model.params,),
    slots,
    jax.ShapeDtypeStruct((), np.int32),
    tuple(jax.ShapeDtypeStruct((), np.float32) for _ in numbers),
    specs=((model.config, model.layout),),
    decoding=sampling.decoding,
    recording=sampling.recording,
    steps=sampling.segment,
  )
