"""Floor 6. What the compiler says of every program of a stage: memory, and what chips send each other.

Programs are those that the run will use, for batches whose responses are all as long as their budget. Nothing runs.
"""

import itertools
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from opd_jax.inference import decode_ahead
from opd_jax.judges.spec import Judge, named_parts
from opd_jax.planning import cost, kept
from opd_jax.planning.flops import Chip, scoring
from opd_jax.planning.memory import bytes_each
from opd_jax.planning.traffic import SLICES
from opd_jax.training import shapes, stage_programs, writers
from opd_jax.training.experiment import Experiment, Stage
from opd_jax.training.runtime import build_runtime
from opd_jax.training.shapes import SELF
from opd_jax.training.stage_programs import WRITER, Program
from opd_jax.training.state import abstract_state


class Compiled(NamedTuple):
  """A program, as the compiler sees it on one device."""

  verb: str
  name: str
  times: float  # that a step runs it
  peak: int  # bytes while it runs, its arguments included
  beside: int  # bytes of what else lies there at that time
  sent: Mapping[str, float]  # bytes of a call's collectives, by kind; one round of its `loop`
  loop: int = 1
  refused: str | None = None  # why there is no room; peak and sent are 0 then
  seconds: float = 0.0  # that compiling took
  kept: bool = False  # from an earlier plan

  @property
  def total(self) -> int:
    return self.peak + self.beside


class Residents(NamedTuple):
  """Bytes that lie on one device."""

  student: int
  optimiser: int
  snapshots: int
  judges: Mapping[str, int]  # on the student's devices
  apart: Mapping[str, tuple[int, frozenset[Any]]]  # on devices of their own, and which these are
  writer: int  # while responses are sampled
  writes_apart: bool  # on devices that are not those of training
  evidence: int  # from scoring to the update, of all batches on their way

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
  found += stage_programs.of_teacher(runtime, state, seen)
  for evaluation in experiment.evaluations:
    found += stage_programs.of_evaluation(runtime, state, evaluation, longest)
  writer = writers.student_model(runtime, state.weights).params if seen.student_writes else ()
  judges, apart = {}, {}
  for name, judge in runtime.judges.items():
    for model, _ in shapes.models_of(judge, runtime.requests[name]):
      if model.own is not None and model.layout.apart(experiment.layout):
        apart[model.name] = bytes_each(model.own), frozenset(model.layout.mesh.devices.flat)
      elif model.own is not None:
        judges[model.name] = bytes_each(model.own)
  residents = Residents(
    student=bytes_each((state.params, state.base)),
    optimiser=bytes_each(state.optimiser),
    snapshots=bytes_each(state.snapshots),
    judges=judges,
    apart=apart,
    writer=bytes_each(writer),
    writes_apart=experiment.writing_layout.apart(experiment.layout),
    evidence=bytes_each((seen.batch.terms, seen.batch.known))
    + (1 + stage.staleness) * bytes_each(seen.evidence.scores),
  )
  return found, residents


def measured(program: Program, residents: Residents, *, devices: Sequence[Any]) -> Compiled:
  """Compiles a program, or takes what an earlier plan was told of it.

  Args:
    program: of the stage.
    residents: what lies beside it.
    devices: of the student's mesh.
  """
  answer = kept.asked(program.lower(), devices)
  scores_apart = program.verb == 'score' and program.model in residents.apart
  return Compiled(
    verb=f'score {program.model}' if scores_apart else program.verb,
    name=program.name,
    times=program.times,
    peak=answer.peak,
    beside=_beside(program, residents),
    sent=answer.sent,
    loop=program.loop,
    refused=answer.refused,
    seconds=answer.seconds,
    kept=answer.kept,
  )


def _beside(program: Program, residents: Residents) -> int:
  """What lies on a device and is no argument of the program."""
  if program.model in residents.apart:
    own, here = residents.apart[program.model]
    others = (each for name, each in residents.apart.items() if name != program.model)
    return own * (program.verb == 'sample') + sum(size for size, where in others if where & here)
  if program.model == WRITER:  # a copy that is an argument
    return 0 if residents.writes_apart else residents.always
  total = residents.always + residents.evidence * (program.verb in ('weigh', 'update'))
  if program.verb == 'sample':  # a teacher's, and what it writes with is a copy
    return total
  if program.name == 'apply':
    return total - residents.student - residents.optimiser
  if program.model == SELF:
    return total - residents.student
  if program.model == '':
    return total - residents.evidence
  return total - residents.judges.get(program.model, residents.student)


class Verb(NamedTuple):
  """The least that a verb of a step takes on each device."""

  flops: float
  read: float  # bytes of weights and cache that decoding reads
  sent: float  # bytes, to neighbours
  far: float = 0.0  # bytes, to other slices

  def seconds(self, chip: Chip) -> tuple[float, str]:
    """Least seconds, and what bounds them."""
    bounds = {
      'computing': self.flops / chip.flops,
      'reading': self.read / chip.bandwidth,
      'sending': self.sent / chip.network,
      'sending between slices': self.far / chip.outside,
    }
    bound = max(bounds, key=bounds.__getitem__)
    return bounds[bound], bound


def verbs(
  experiment: Experiment, stage: Stage, compiled: Iterable[Compiled], residents: Residents
) -> dict[str, Verb]:
  """What a step takes on each device: FLOPs and reading from shapes, sending as it was compiled."""
  whole, devices = cost.of_step(experiment.model, stage, {}), experiment.layout.mesh.size
  sending: dict[str, float] = {}
  far: dict[str, float] = {}
  for each in compiled:
    calls, across = each.times * each.loop, each.sent.get(SLICES, 0.0)
    here = calls * (sum(each.sent.values()) - across)
    sending[each.verb] = sending.get(each.verb, 0.0) + here
    far[each.verb] = far.get(each.verb, 0.0) + calls * across
  rows, budget = stage.prompts * stage.samples, stage.sampling.budget
  read = cost.decoding_reads(experiment.model, stage, weights=residents.writer, devices=devices)
  scores, own = {}, {}
  for part, judge in itertools.chain(*(named_parts(x, stage.judges[x]) for x in stage.asked)):
    if part in residents.apart and isinstance(judge, Judge):
      config = cost.config_of(judge, experiment.model, {})
      scores[f'score {part}'] = scoring(config, rows, budget).score
      own[f'score {part}'] = len(residents.apart[part][1])
  shares = {
    'sample': whole.sample,
    'score': whole.score - sum(scores.values()),
    **scores,
    'update': whole.train,
  }
  return {
    verb: Verb(
      flops / own.get(verb, devices),
      read * (verb == 'sample'),
      sending.get(verb, 0.0),
      far.get(verb, 0.0),
    )
    for verb, flops in shares.items()
  }
