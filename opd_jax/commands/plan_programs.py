"""Floor 6. What `opd plan` shows of compiled programs: memory against the chip's, and the least time of a step."""

import os
from collections.abc import Sequence
from typing import Any

from opd_jax.commands import console

GIB = 2**30


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


def show(experiment: Any, *, longest: int, chip: str | None) -> int:
  """Compiles all programs of all stages, tells what they take, and returns the exit status."""
  from opd_jax.planning.flops import CHIPS

  known = CHIPS.get(chip or '')
  fits = True
  for number, stage in enumerate(experiment.stages):
    print(
      f'stage    {stage.name}: prompts of at most {longest} tokens, every response as long as its budget'
    )
    fits &= _stage(experiment, number, longest, known)
  return 0 if fits else 1


def _stage(experiment: Any, number: int, longest: int, chip: Any) -> bool:
  from opd_jax.planning import compiled

  stage, platform = experiment.stages[number], experiment.layout.mesh.devices.flat[0].platform
  programs, residents = compiled.programs(experiment, number, longest)
  held = [('student', residents.student), ('optimiser', residents.optimiser)]
  held += [('copies of it', residents.snapshots), *residents.judges.items()]
  print('resident ' + ', '.join(f'{name} {console.memory(size)}' for name, size in held if size))
  rows, measured, failed = [], [], []
  with console.RunLine('compiling') as line:
    for done, program in enumerate(programs):
      line.progress(done, len(programs), f'{program.verb}: {program.name}')
      try:
        measured.append(compiled.measured(program, residents, platform=platform))
      except Exception as error:
        reason = _reason(error)
        if reason is None:
          raise
        failed.append(program)
        rows.append((program.verb, program.name, '', 'does not fit', '', reason))
        continue
      rows.append(_row(measured[-1]))
  console.table(('verb', 'program', 'GiB', 'with the rest', 'sent', 'of that, or why'), rows)
  worst = max(measured, key=lambda each: each.total, default=None)
  fits = not failed
  if chip is not None and worst is not None:
    fits = fits and worst.total <= chip.memory
    room = console.memory(int(chip.memory))
    print(f'fullest  {worst.name}: {console.memory(worst.total)} of {room}')
    _times(compiled.verbs(experiment, stage, measured, residents), stage, chip)
  if not fits:
    culprits = failed or [worst]
    print(f'does not fit: {_advice(culprits[0], stage)}')
  return fits


def _row(each: Any) -> tuple[str, ...]:
  sent, kinds = 'not known', ''
  if each.sent is not None:
    parts = [(kind, size / GIB) for kind, size in sorted(each.sent.items()) if size]
    kinds = ', '.join(f'{kind} {size:.2f}' for kind, size in parts)
    sent = f'{sum(size for _, size in parts):.2f} x {each.times:g}' if parts else ''
  return each.verb, each.name, f'{each.peak / GIB:.2f}', f'{each.total / GIB:.2f}', sent, kinds


def _times(verbs: dict[str, Any], stage: Any, chip: Any) -> None:
  seconds = {verb: found.seconds(chip) for verb, found in verbs.items()}
  whole = sum(took for took, _ in seconds.values())
  for verb, (took, bound) in seconds.items():
    known = '' if verbs[verb].sent_is_known else '; what it sends is not known'
    print(f'{verb:8} at least {took:.3g} s a step, bound by {bound}{known}')
  tokens = stage.prompts * stage.samples * stage.sampling.budget
  print(f'step     at least {whole:.3g} s, at most {tokens / max(whole, 1e-9):,.0f} tokens/s')


def _reason(error: Exception) -> str | None:
  """Why a compiler found no room; None where that was not the reason."""
  text = str(error)
  if 'RESOURCE_EXHAUSTED' not in text and 'Ran out of memory' not in text:
    return None
  lines: Sequence[str] = [line.strip() for line in text.splitlines() if 'hbm' in line.lower()]
  return (lines or text.splitlines())[0][:120]


def _advice(program: Any, stage: Any) -> str:
  """The smallest change that makes room."""
  if program.verb == 'sample':
    return f'fewer rows in flight, sampler.Sampling.slots = {max(stage.sampling.slots // 2, 1)}, or a wider mesh'
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
