"""Floor 6. `opd plan`: what an experiment puts on each device and how long a step takes at least; allocates nothing."""

import argparse
import dataclasses
import json
from pathlib import Path
from typing import Any

from opd_jax import units
from opd_jax.commands import console, flags, plan_programs

HELP = 'what an experiment would put on each device; allocates nothing'
EPILOG = (
  flags.GIN
  + """\
  opd plan --gin_file experiments/models/qwen3_8b.gin --gin_file experiments/layouts/fsdp.gin \\
           --gin_bindings 'presets.qwen3_8b.param_dtype = "bfloat16"' --devices 8

--topology compiles every program of the stages for TPU chips that are not here (libtpu must be installed; set
TPU_SKIP_MDS_QUERY=1 where the machine is no TPU); --compile does it for the devices that are, or are simulated.
Batches are planned as wide as they can become; text that a teacher helps to write token by token is left out. Exit
status 1: something does not fit. --json tells the same in bytes and seconds.

What the compiler said of a program is kept in ~/.cache/opd_jax/plans, so a later plan compiles only what is new.
JAX_ENABLE_COMPILATION_CACHE=0 compiles everything.

  opd plan --gin_file experiments/recipes/qwen3_1p7b_from_8b.gin --gin_file experiments/layouts/pod.gin \\
           --topology v5e:4x4
"""
)
MOST_DEVICES = 4096  # simulating them takes the processor 6 s


def add_flags(parser: argparse.ArgumentParser) -> None:
  flags.add_gin(parser)
  parser.add_argument(
    '--workdir',
    metavar='DIR',
    help='write the configuration in force to DIR/config.gin, and the plan to DIR/plan.json for `opd report`',
  )
  parser.add_argument('--devices', type=int, metavar='N', help='plan as if N devices were here')
  parser.add_argument(
    '--topology', metavar='CHIP:SIDES', help='compile for such chips: v5e:4x4, v5p:4x4x4, v6e:8x8'
  )
  parser.add_argument(
    '--slices', type=int, default=1, metavar='N', help='of the topology, side by side; 1'
  )
  parser.add_argument(
    '--compile', action='store_true', help='compile for the devices that are here, or --devices'
  )
  parser.add_argument(
    '--prompt',
    type=int,
    default=512,
    metavar='N',
    help='tokens of the longest prompt, where programs are compiled; 512',
  )
  parser.add_argument(
    '--chip',
    metavar='NAME',
    help='tell the hours that the run costs of such a chip: h100, h200, v5e, v5p, v6e',
  )
  parser.add_argument(
    '--mfu', type=float, default=0.4, metavar='X', help='share of its peak to reckon with; 0.4'
  )
  flags.add_json(parser)


def run(args: argparse.Namespace) -> int:
  if args.devices is not None:
    _simulate(args.devices)
  if args.topology is not None:
    plan_programs.pretend(args.topology, args.slices)
  from opd_jax.configuration import build
  from opd_jax.planning import cost, memory
  from opd_jax.planning.flops import chip_of

  experiment, operative = build(args.gin_file, args.gin_bindings, flags.trust_of(args))
  parameters, mesh = memory.plan(experiment), memory.devices_of(experiment)
  held = {stage.name: memory.held(experiment, stage)._asdict() for stage in experiment.stages}
  hours = None
  if args.chip is not None:
    chip = chip_of(args.chip, args.mfu)
    hours = cost.cost_of(experiment, {}).hours(chip, args.mfu)
  name = args.topology.partition(':')[0] if args.topology else args.chip
  if not args.json:
    unknown = {stage.name: memory.unknown(experiment, stage) for stage in experiment.stages}
    _print(experiment.student, parameters, mesh, held, unknown)
    if hours is not None:
      print(f'cost     {_told(hours, str(args.chip), args.mfu)}')
    _print_apart(experiment, args.chip, args.mfu)
  told, status = [], 0
  if args.topology is not None or args.compile:
    told, status = plan_programs.stages(
      experiment, longest=args.prompt, chip=name, shows=not args.json
    )
  known = {'topology': args.topology, 'slices': args.slices, 'chip': name}
  known |= {'model': dataclasses.asdict(experiment.student), 'mesh': mesh, **parameters._asdict()}
  known |= {'stages': held, 'hours': hours and hours._asdict(), 'compiled': told}
  _write(args, operative, json.dumps(known, indent=2))
  return status


def _write(args: argparse.Namespace, operative: str, plan: str) -> None:
  """To the workdir, and with --json to the terminal."""
  if args.json:
    print(plan)
  if not args.workdir:
    return
  folder = Path(args.workdir)
  folder.mkdir(parents=True, exist_ok=True)
  (folder / 'config.gin').write_text(operative)
  (folder / 'plan.json').write_text(plan + '\n')
  if not args.json:
    print(f'wrote    {folder / "config.gin"} and {folder / "plan.json"}')


def _simulate(devices: int) -> None:
  import jax

  if not 1 <= devices <= MOST_DEVICES:
    raise ValueError(f'--devices must be 1 to {MOST_DEVICES}, got {devices}.')
  jax.config.update('jax_platforms', 'cpu')
  jax.config.update('jax_num_cpu_devices', devices)


def _told(hours: Any, chip: str, mfu: float) -> str:
  share = lambda part: f'{part / hours.total:.0%}'
  return (
    f'{hours.total:.3g} hours of one {chip} at {mfu:.0%} of its peak, were every response as long as its budget: '
    f'train {share(hours.train)}, score {share(hours.score)}, sample {share(hours.sample)}, bound by '
    f'{hours.sampling_bound}'
  )


def _print_apart(experiment: Any, chip: str | None, mfu: float) -> None:
  """Judges on devices of their own, and how long they and the student stand idle."""
  from opd_jax.planning import memory, overlap
  from opd_jax.planning.flops import chip_of

  for stage in experiment.stages:
    apart = memory.apart(experiment, stage)
    for weights, layout, size in apart:
      print(f'apart    {weights} holds {units.memory(size)} on each device of {layout}')
    if not apart or chip is None:
      continue
    times = overlap.times_of(experiment, stage, chip_of(chip, mfu), mfu, {})
    judges = ', '.join(f'{name} scores {took:.3g} s' for name, took in times.judges.items())
    print(
      f'overlap  stage {stage.name}: a step writes {times.write:.3g} s and learns {times.update:.3g} s at least, '
      f'{judges}'
    )
    for staleness in sorted({0, 1, stage.staleness}):
      idle = overlap.idle(times, staleness)
      shares = ', '.join(f'{name} {share:.0%}' for name, share in idle.items())
      chosen = ' (the stage)' if staleness == stage.staleness else ''
      print(f'idle     staleness {staleness}{chosen}: {shares}')


def _print(
  model: Any,
  parameters: Any,
  mesh: str,
  held: dict[str, dict[str, int]],
  unknown: dict[str, list[str]],
) -> None:
  print(
    f'model    {model.family}, {model.num_layers} layers x {model.width}, {parameters.parameters:,} parameters, '
    f'{parameters.trained:,} of them trained'
  )
  print(f'layout   {mesh}')
  total, each = (
    units.memory(size) for size in (parameters.bytes_total, parameters.bytes_per_device)
  )
  print(f'memory   {total} of {model.param_dtype} parameters, {each} on each device')
  for name, parts in held.items():
    print(f'stage    {name} holds {console.held(parts, unknown[name])}')
  rows = [(path, shape, units.memory(size)) for path, shape, size in parameters.largest]
  console.table(('largest parameters', 'on one device', 'bytes there'), rows)
