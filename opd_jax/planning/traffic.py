"""Floor 6. What the devices of a compiled program send each other, read in the text of the program."""

import math
import re
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jax

COLLECTIVES = (
  'all-gather',
  'all-reduce',
  'reduce-scatter',
  'all-to-all',
  'collective-permute',
  'ragged-all-to-all',
)
HEAD = re.compile(r'^(?:ENTRY )?%?([\w.\-]+) \(.*\) -> .* \{$')
CALLED = re.compile(
  r'(?:calls|to_apply|body|condition|branch_computations)=(?:\{([^}]*)\}|%?([\w.\-]+))'
)
TRIPS = re.compile(r'known_trip_count[^0-9]*(\d+)')
CONDITION = re.compile(r'condition=%?([\w.\-]+)')
BOUND = re.compile(r'^\s*(?:ROOT )?%?([\w.\-]+) = [su]32\[\].* constant\((\d+)\)')
BELOW = re.compile(
  r'ROOT .* compare\((?:[^ ,]+ )?%?([\w.\-]+), (?:[^ ,]+ )?%?([\w.\-]+)\), direction=LT'
)
ELEMENT = re.compile(r'^\s*%?([\w.\-]+) = .* get-tuple-element\(.*\), index=(\d+)')
TUPLE = re.compile(r'ROOT .* tuple\((.*?)\)')
ADDED = re.compile(r'^\s*%?([\w.\-]+) = [su]32\[\].* add\(%?[\w.\-]+, %?([\w.\-]+)\)')
NAME = re.compile(r'%([\w.\-]+)')
BODY = re.compile(r'body=%?([\w.\-]+)')
GROUPS = re.compile(r'replica_groups=(?:\{\{([\d,]*)\}|\[\d+,(\d+)\]|mesh\[([^\]]*)\] \{([^}]*)\})')
AXIS = re.compile(r"'(\w+)'=(\d+)")
JOINED = re.compile(r"'(\w+)'(?::\(\d+\)(\d+))?")  # an axis, or a part of one
OPERATION = re.compile(rf'^\s*(?:ROOT )?%?[\w.\-]+ = (.*?) ({"|".join(COLLECTIVES)})(-start)?\(')
STAGE = re.compile(r'channel_id=(\d+),.*chain_id="(\d+)"')
# Between slices a TPU's host sends: the type of the collective, and what it counts of which end.
BETWEEN = re.compile(
  r'^\s*(?:ROOT )?%?[\w.\-]+ = (.*?) (send|recv)\(.*_xla_megascale_transfer_type="(\w+)"'
)
COUNTED = {('send', 'ALL_REDUCE'): 2, ('recv', 'ALL_GATHER'): 1, ('send', 'ALL_GATHER'): 0}
SLICES = 'between slices'
ARRAY = re.compile(r'\b(pred|[sufbc]\w*?\d+\w*)\[([\d,]*)\]')


def printed(lowered: jax.stages.Lowered) -> tuple[jax.stages.Compiled, str]:
  """A program and its text, as the compiler writes it to a file.

  With some asynchronous copies libtpu cannot hand out a program that it has compiled, and so not its text.
  """
  with tempfile.TemporaryDirectory() as folder:
    options: dict[str, Any] = {'xla_dump_to': folder, 'xla_dump_hlo_as_text': True}
    compiled = lowered.compile(compiler_options=options)
    found = sorted(
      Path(folder).glob('*after_optimizations.txt'), key=lambda file: file.stat().st_size
    )
    assert found, 'the compiler wrote no text'
    return compiled, found[-1].read_text()


def sent(text: str) -> dict[str, float]:
  """Bytes that the collectives of a compiled program hand over, by kind.

  Of the larger of what each takes and hands out; a reduction that everybody gets counts twice. A TPU shows a collective
  that runs beside products once in each of the fusions that are its stages: a chain is one operation. What crosses
  slices is a kind of its own.
  """
  bodies, entry = _computations(text)
  totals: dict[str, float] = {}
  for kind, size in _walk(bodies, entry, 1, set()):
    totals[kind] = totals.get(kind, 0) + size
  return totals


def _computations(text: str) -> tuple[dict[str, list[str]], str]:
  bodies: dict[str, list[str]] = {}
  name, entry = '', ''
  for line in text.splitlines():
    if head := HEAD.match(line):
      name = head[1]
      bodies[name] = []
      entry = name if line.startswith('ENTRY') else entry
    elif name:
      bodies[name].append(line)
  return bodies, entry


def _walk(
  bodies: Mapping[str, list[str]], name: str, times: int, chains: set[tuple[str, ...]]
) -> Iterator[tuple[str, float]]:
  """Kinds and bytes of a computation and of what it calls; `chains` are those that its round has begun."""
  for line in bodies.get(name, ()):
    if found := OPERATION.match(line):
      if stage := STAGE.search(line):
        if stage.groups() in chains:
          continue
        chains.add(stage.groups())
      size = _size(found[1], is_start=found[3] is not None)
      more = {'all-reduce': 2, 'reduce-scatter': _members(line)}
      if name.startswith(
        'all-reduce-scatter'
      ):  # a TPU's fusion of a sum with a slice: one operation
        yield 'reduce-scatter', times * size
      else:
        yield found[2], times * size * more.get(found[2], 1)
      continue  # what it calls adds numbers
    if far := BETWEEN.match(line):
      counted = COUNTED.get((far[2], far[3]), int(far[2] == 'send'))
      yield SLICES, times * counted * _size(far[1], is_start=True)
      continue
    is_loop = ' while(' in line
    trips, begun = (_trips(bodies, line), set[tuple[str, ...]]()) if is_loop else (1, chains)
    for several, one in CALLED.findall(line):
      for each in (several or one).replace('%', '').split(','):
        yield from _walk(bodies, each.strip(), times * trips, begun)


def _trips(bodies: Mapping[str, list[str]], line: str) -> int:
  """How often a loop runs: as it says, or up to the constant that its condition compares with; once if neither."""
  if match := TRIPS.search(line):
    return int(match[1])
  condition, body = (
    bodies.get(match[1], []) if (match := pattern.search(line)) else []
    for pattern in (CONDITION, BODY)
  )
  below = next((match for each in condition if (match := BELOW.search(each))), None)
  if below is None:
    return 1
  counter, last = below.groups()
  places = {match[1]: int(match[2]) for each in condition if (match := ELEMENT.match(each))}
  return math.ceil(_numbers(condition).get(last, 1) / _step(body, places.get(counter)))


def _step(body: list[str], place: int | None) -> int:
  """What a round adds to the counter at a place of the loop's tuple: two where rounds are unrolled in pairs."""
  handed = next((NAME.findall(match[1]) for each in body if (match := TUPLE.search(each))), [])
  if place is None or place >= len(handed):
    return 1
  added = {match[1]: match[2] for each in body if (match := ADDED.match(each))}
  return max(_numbers(body).get(added.get(handed[place], ''), 1), 1)


def _numbers(lines: list[str]) -> dict[str, int]:
  return {match[1]: int(match[2]) for each in lines if (match := BOUND.match(each))}


def _members(line: str) -> int:
  """Devices that a collective joins."""
  match = GROUPS.search(line)
  if match is None:
    return 1
  listed, paired, axes, joined = match.groups()
  if axes is not None:
    sizes = dict(AXIS.findall(axes))
    return math.prod(int(part or sizes[name]) for name, part in JOINED.findall(joined))
  return int(paired) if paired else listed.count(',') + 1


def _size(shape: str, *, is_start: bool) -> float:
  """Bytes of the arrays of a shape; what an operation that has begun hands out holds its operands, too."""
  sizes = [
    math.prod(map(int, filter(None, dims.split(',')))) * _itemsize(kind)
    for kind, dims in ARRAY.findall(shape)
  ]
  return max(sizes, default=0) if is_start else sum(sizes)


def _itemsize(kind: str) -> float:
  if kind == 'pred':
    return 1
  bits = re.search(r'\d+', kind)
  return int(bits[0]) / 8 if bits else 4
