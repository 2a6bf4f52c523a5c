"""Floor 6. What `opd plan` shows of compiled programs: memory against the chip's, and the least time of a step."""

import os
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from opd_jax import units
from opd_jax.commands import console

GIB = 2**30


class StagePlan(NamedTuple):
  """What compiling the programs of a stage has told."""

  stage: Any
  residents: Any
  compiled: Sequence[Any]  # those that fit
  failed: Sequence[Any]  # the others
  verbs: Mapping[str, Any]
  devices: int
  flops: float  # of a step, on all devices

  @property
  def fullest(self) -> Any:
    return max(self.compiled, key=lambda each: each.total, default=None)

  def fits(self, chip: Any) -> bool:
    """Whether everything has room; where the chip is not known, whatever could be compiled has."""
    most = 0 if self.fullest is None else self.fullest.total
    return not self.failed and (chip is None or most <= chip.memory)

  def seconds(self, chip: Any) -> dict[str, tuple[float, str]]:
    """The least that each verb of a step takes, and what bounds it."""
    return {verb: found.seconds(chip) for verb, found in self.verbs.items()}


def pretend(topology: str, slices: int) -> None:
  """Layouts lie on such chips from here on; they need not be here."""
  import importlib.util

  if importlib.util.find_spec('libtpu') is None:
    raise ValueError(
      '--topology compiles with the compiler of TPUs, libtpu, and it is not installed: pip install "opd_jax[tpu]"'
    )
  os.environ.setdefault('TPU_SKIP_MDS_QUERY', '1')
  import jax
  from jax.experimental import topologies

  from opd_jax import sharding

  jax.config.update('jax_platforms', 'cpu')
  more = {'num_slices': slices} if slices > 1 else {}
  try:
    found = topologies.get_topology_desc(topology, 'tpu', **more)
  except (jax.errors.JaxRuntimeError, NotImplementedError) as error:
    raise ValueError(
      f'--topology {topology}: {str(error).splitlines()[0]} Name chips and sides, e.g. v5e:4x4 or v5p:4x4x4.'
    ) from error
  sharding.pretend(found.devices)


def examined(experiment: Any, number: int, longest: int) -> StagePlan:
  """Compiles every program of a stage."""
  from opd_jax.planning import compiled, cost

  stage, mesh = experiment.stages[number], experiment.layout.mesh
  programs, residents = compiled.programs(experiment, number, longest)
  measured = []
  with console.RunLine('compiling') as line:
    for done, program in enumerate(programs, start=1):
      line.progress(done, len(programs), f'{program.verb}: {program.name}')
      measured.append(compiled.measured(program, residents, devices=[*mesh.devices.flat]))
  return StagePlan(
    stage=stage,
    residents=residents,
    compiled=[each for each in measured if each.refused is None],
    failed=[each for each in measured if each.refused is not None],
    verbs=compiled.verbs(experiment, stage, measured, residents),
    devices=mesh.size,
    flops=cost.of_step(experiment.model, stage, {}).flops,
  )


def stages(
  experiment: Any, *, longest: int, chip: str | None, shows: bool
) -> tuple[list[dict[str, Any]], int]:
  """Compiles all programs of all stages.

  Args:
    experiment: whose.
    longest: tokens of the longest prompt.
    chip: what the devices are; None where nobody says.
    shows: prints a table of each stage when it is known.

  Returns:
    What JSON tells of each stage, and the exit status: 1 where something does not fit.
  """
  from opd_jax.planning.flops import CHIPS

  known, told = CHIPS.get(chip or ''), []
  if shows and chip is not None and known is None:
    print(f'what a {chip} holds is not known here, so only what the compiler refuses does not fit')
  for number, stage in enumerate(experiment.stages):
    if shows:
      print(
        f'stage    {stage.name}: prompts of at most {longest} tokens, every response as long as its budget'
      )
    plan = examined(experiment, number, longest)
    if shows:
      _show(plan, known)
    told.append(_as_json(plan, known))
  return told, 0 if all(each['fits'] for each in told) else 1


def _as_json(plan: StagePlan, known: Any) -> dict[str, Any]:
  resident = plan.residents._asdict()
  resident['apart'] = {name: size for name, (size, _) in plan.residents.apart.items()}
  failed = ('verb', 'name', 'refused', 'seconds', 'kept')
  return {
    'stage': plan.stage.name,
    'resident': resident,
    'programs': [{**each._asdict(), 'total': each.total} for each in plan.compiled],
    'failed': [{name: getattr(each, name) for name in failed} for each in plan.failed],
    'least_seconds': plan.seconds(known) if known else None,
    'memory': known and known.memory,
    'fits': plan.fits(known),
  }


def _show(plan: StagePlan, chip: Any) -> None:
  known = plan.residents
  held = [('student', known.student), ('optimiser', known.optimiser)]
  held += [('copies of it', known.snapshots), *known.judges.items()]
  print('resident ' + ', '.join(f'{name} {units.memory(size)}' for name, size in held if size))
  for name, (size, where) in known.apart.items():
    print(f'apart    {name} {units.memory(size)} on each of {len(where)} devices of its own')
  rows = [_row(each) for each in plan.compiled]
  rows += [(each.verb, each.name, '', 'does not fit', '', each.refused) for each in plan.failed]
  console.table(('verb', 'program', 'GiB', 'with the rest', 'sent', 'of that, or why'), rows)
  print(f'compiled {_whence(plan)}')
  if chip is not None and plan.fullest is not None:
    room = units.memory(int(chip.memory))
    print(f'fullest  {plan.fullest.name}: {units.memory(plan.fullest.total)} of {room}')
    _times(plan, chip)
  if not plan.fits(chip):
    culprit = [*plan.failed, plan.fullest][0]
    print(f'does not fit: {_advice(culprit, plan.stage)}')


def _whence(plan: StagePlan) -> str:
  """How many programs were compiled, in what time, and of how many the folder of plans knew the answer."""
  everything = [*plan.compiled, *plan.failed]
  new = [each for each in everything if not each.kept]
  kept, took = len(everything) - len(new), sum(each.seconds for each in new)
  told = f'{len(new)} programs in {took:.3g} s'
  return f'{told}; {kept} known already' if kept else told


def _row(each: Any) -> tuple[str, ...]:
  parts = [(kind, size / GIB) for kind, size in sorted(each.sent.items()) if size]
  kinds = ', '.join(f'{kind} {size:.2f}' for kind, size in parts)
  sent = f'{sum(size for _, size in parts):.2f} x {each.times:g}' if parts else ''
  return each.verb, each.name, f'{each.peak / GIB:.2f}', f'{each.total / GIB:.2f}', sent, kinds


def _times(plan: StagePlan, chip: Any) -> None:
  seconds, stage = plan.seconds(chip), plan.stage
  whole = max(sum(took for took, _ in seconds.values()), 1e-9)
  for verb, (took, bound) in seconds.items():
    print(f'{verb:8} at least {took:.3g} s a step, bound by {bound}')
  tokens = stage.prompts * stage.samples * stage.sampling.budget
  share = plan.flops / (plan.devices * chip.flops * whole)
  hours = stage.steps * whole * plan.devices / 3600
  print(
    f'step     at least {whole:.3g} s: at most {tokens / whole:,.0f} tokens/s and {share:.0%} of the peak; '
    f'{stage.steps:,} steps at least {hours:.3g} chip-hours, evaluations not counted'
  )


def _advice(program: Any, stage: Any) -> str:
  """The smallest change that makes room."""
  if program.verb == 'sample':
    return f'fewer rows in flight, sampler.Sampling.slots = {max(stage.sampling.slots // 2, 1)}, or a wider mesh'
  if program.verb == 'evaluate':
    return 'fewer rows of evaluations in flight, evaluator.Evaluation.slots, or a wider mesh'
  if program.verb == 'score':
    return (
      f'fewer rows of a pass, experiment.Stage.rows = {max(stage.rows // 2, 1)}, or a wider mesh'
    )
  if program.name == 'apply':
    return 'a wider mesh, or a narrower optimiser state'
  return (
    f'smaller microbatches, experiment.Stage.microbatches = {2 * stage.microbatches}, remat = "full" in the preset, '
    'or a wider mesh'
  )
