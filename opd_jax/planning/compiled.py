"""Floor 6. What the compiler says of every program of a stage: memory, and what chips send each other.

Programs are those that the run will use, for batches whose responses are all as long as their budget. Nothing runs.
"""

import math
import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, NamedTuple

import jax

from opd_jax.inference import decode_ahead
from opd_jax.planning import cost
from opd_jax.planning.flops import Chip, cache_read
from opd_jax.planning.memory import bytes_each
from opd_jax.training import shapes, stage_programs, writers
from opd_jax.training.experiment import Experiment, Stage
from opd_jax.training.runtime import build_runtime
from opd_jax.training.shapes import SELF
from opd_jax.training.stage_programs import Program
from opd_jax.training.state import abstract_state

COLLECTIVES = (
  'all-gather',
  'all-reduce',
  'reduce-scatter',
  'all-to-all',
  'collective-permute',
  'ragged-all-to-all',
)


class Compiled(NamedTuple):
  """A program, as the compiler sees it on one device."""

  verb: str
  name: str
  times: float  # that a step runs it
  peak: int  # bytes while it runs, its arguments included
  beside: int  # bytes of what else lies there at that time
  sent: Mapping[str, float] | None  # bytes of a call's collectives, by kind; None: not known

  @property
  def total(self) -> int:
    return self.peak + self.beside


class Residents(NamedTuple):
  """Bytes that lie on one device."""

  student: int
  optimiser: int
  snapshots: int
  judges: Mapping[str, int]
  writer: int  # while responses are sampled
  evidence: int  # from scoring to the update

  @property
  def always(self) -> int:
    return self.student + self.optimiser + self.snapshots + sum(self.judges.values())


def programs(experiment: Experiment, number: int, longest: int) -> tuple[list[Program], Residents]:
  """The widest programs of a stage, and what lies on a device.

  Args:
    number: of the stage.
    longest: tokens of the longest prompt.
  """
  stage = experiment.stages[number]
  runtime = build_runtime(experiment, number, shape_of=cost.shape_of)
  state = abstract_state(experiment, stage)
  seen = shapes.blank(runtime, state, longest)
  found = list(stage_programs.at_width(runtime, state, seen, seen.width))
  found += stage_programs.deals(runtime, seen, seen.width, [seen.width])
  found += stage_programs.applies(runtime, state)
  found += stage_programs.of_sampler(runtime, state, seen, decode_ahead.widest)
  writer = writers.student_model(runtime, state.weights).params if seen.student_writes else ()
  judges = {}
  for name, judge in runtime.judges.items():
    for model, _ in shapes.models_of(judge, runtime.requests[name]):
      if model.own is not None:
        judges[model.name] = bytes_each(model.own)
  residents = Residents(
    student=bytes_each((state.params, state.base)),
    optimiser=bytes_each(state.optimiser),
    snapshots=bytes_each(state.snapshots),
    judges=judges,
    writer=bytes_each(writer),
    evidence=bytes_each((seen.evidence.scores, seen.batch.terms, seen.batch.known)),
  )
  return found, residents


def measured(program: Program, residents: Residents, *, platform: str) -> Compiled:
  """Compiles a program; one that does not fit is refused by the compiler of a chip.

  For processors, the compiler's own peak leaves temporaries out, so they are added up.
  """
  compiled = program.compile()
  memory: Any = compiled.memory_analysis()
  peak = memory.peak_memory_in_bytes
  if platform == 'cpu':
    given = memory.argument_size_in_bytes + memory.output_size_in_bytes
    peak = given + memory.temp_size_in_bytes - memory.alias_size_in_bytes
  return Compiled(
    verb=program.verb,
    name=program.name,
    times=program.times,
    peak=peak,
    beside=_beside(program, residents),
    sent=_sent(compiled),
  )


def _beside(program: Program, residents: Residents) -> int:
  """What lies on a device and is no argument of the program."""
  if program.verb == 'sample':  # its weights are the writer's
    return residents.always
  total = residents.always + residents.evidence * (program.verb != 'score')
  if program.name == 'apply':
    return total - residents.student - residents.optimiser
  if program.model == SELF:
    return total - residents.student
  if program.model == '':
    return total - residents.evidence
  return total - residents.judges.get(program.model, residents.student)


# --- what is sent -----------------------------------------------------------------------------------

HEAD = re.compile(r'^(?:ENTRY )?%?([\w.\-]+) \(.*\) -> .* \{$')
CALLED = re.compile(
  r'(?:calls|to_apply|body|condition|branch_computations)=(?:\{([^}]*)\}|%?([\w.\-]+))'
)
TRIPS = re.compile(r'known_trip_count[^0-9]*(\d+)')
OPERATION = re.compile(rf'^\s*(?:ROOT )?%?[\w.\-]+ = (.*?) ({"|".join(COLLECTIVES)})(-start)?\(')
ARRAY = re.compile(r'\b(pred|[sufbc]\w*?\d+\w*)\[([\d,]*)\]')


def _sent(compiled: jax.stages.Compiled) -> dict[str, float] | None:
  """None where the compiler does not show its program: of some with asynchronous copies it shows nothing."""
  try:
    return sent(compiled.as_text() or '')
  except jax.errors.JaxRuntimeError:
    return None


def sent(text: str) -> dict[str, float]:
  """Bytes that the collectives of a compiled program hand over, by kind: of what each hands out, reductions twice."""
  bodies, entry = _computations(text)
  totals: dict[str, float] = {}
  for kind, size in _walk(bodies, entry, 1):
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


def _walk(bodies: Mapping[str, list[str]], name: str, times: int) -> Iterator[tuple[str, float]]:
  for line in bodies.get(name, ()):
    if found := OPERATION.match(line):
      size = _size(found[1], is_start=found[3] is not None)
      yield found[2], times * size * (2 if found[2] == 'all-reduce' else 1)
      continue  # what it calls adds numbers
    trips = int(match[1]) if ' while(' in line and (match := TRIPS.search(line)) else 1
    for several, one in CALLED.findall(line):
      for each in (several or one).replace('%', '').split(','):
        yield from _walk(bodies, each.strip(), times * trips)


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


# --- what it takes ----------------------------------------------------------------------------------


class Verb(NamedTuple):
  """The least that a verb of a step takes on each device."""

  flops: float
  read: float  # bytes of weights and cache that decoding reads
  sent: float  # bytes
  sent_is_known: bool  # of all its programs

  def seconds(self, chip: Chip) -> tuple[float, str]:
    """Least seconds, and what bounds them."""
    bounds = {
      'computing': self.flops / chip.flops,
      'reading': self.read / chip.bandwidth,
      'sending': self.sent / chip.network,
    }
    bound = max(bounds, key=bounds.__getitem__)
    return bounds[bound], bound


def verbs(
  experiment: Experiment, stage: Stage, compiled: Iterable[Compiled], residents: Residents
) -> dict[str, Verb]:
  """What a step takes on each device: FLOPs and reading from shapes, sending as it was compiled."""
  whole, devices = cost.of_step(experiment.model, stage, {}), experiment.layout.mesh.size
  sending: dict[str, float] = {}
  unknown: set[str] = set()
  for each in compiled:
    if each.sent is None:
      unknown.add(each.verb)
      continue
    times = each.times
    if each.name.startswith('decode'):  # its loop over tokens counts once
      times *= stage.sampling.segment
    sending[each.verb] = sending.get(each.verb, 0.0) + times * sum(each.sent.values())
  rows, budget = stage.prompts * stage.samples, stage.sampling.budget
  tokens = budget * math.ceil(rows / min(stage.sampling.slots, rows))
  read = tokens * residents.writer + cache_read(experiment.model, rows, budget) / devices
  shares = {'sample': whole.sample, 'score': whole.score, 'update': whole.train}
  return {
    verb: Verb(
      flops / devices, read * (verb == 'sample'), sending.get(verb, 0.0), verb not in unknown
    )
    for verb, flops in shares.items()
  }
