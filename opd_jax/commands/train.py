"""Floor 6. `opd train`: runs an experiment in a folder, or goes on with the one that is there."""

import argparse
import shlex
import sys
import time
from typing import Any

from opd_jax import units
from opd_jax.commands import check, console, flags

HELP = 'run an experiment; the same command goes on with one that was interrupted'
EPILOG = (
  flags.GIN
  + """\

A run goes on with its own configuration. How it is observed may change: evaluations, checkpoint_every,
checkpoints_kept, samples_every, rollouts, geometry, wandb. --extend takes more STEPS of the last stage.
SIGTERM and ctrl-c save after the step and exit with 143 and 130; ctrl-c twice does not wait.
Compiled programs are kept in ~/.cache/opd_jax; JAX_COMPILATION_CACHE_DIR names another folder,
JAX_ENABLE_COMPILATION_CACHE=0 keeps none.

  opd train --gin_file experiments/models/small.gin --gin_file experiments/data/sums.gin \\
            --gin_file experiments/methods/sft.gin --workdir runs/sft
"""
)
STOPPED = 3  # exit status where a rule of the experiment stopped the run
SIGNALLED = 128  # and the number of the signal
STUDENT = 'student'  # the folder of the finished model, in the workdir
ADAPTER = 'adapter'  # that of its adapters, as PEFT reads them


def add_flags(parser: argparse.ArgumentParser) -> None:
  flags.add_gin(parser)
  add = parser.add_argument
  add('--workdir', required=True, metavar='DIR', help='metrics, checkpoints, samples, the student')
  add(
    '--skip_preflight',
    action='store_true',
    help='begin without looking at tokenizers and judges, and compile programs when they are needed',
  )
  add(
    '--extend',
    action='store_true',
    help='lengthen a run, also a finished one, by a larger number of steps of its last stage',
  )
  add(
    '--profile',
    type=flags.steps,
    metavar='N[:M]',
    help='write a trace of steps N to M into profile/ of the workdir, for XProf, TensorBoard or Perfetto',
  )
  flags.add_processes(parser)


def run(args: argparse.Namespace) -> int:
  flags.join(args)
  from opd_jax import host
  from opd_jax.configuration import build
  from opd_jax.storage.places import place

  host.keep_memory()
  experiment, operative = build(args.gin_file, args.gin_bindings, flags.trust_of(args))
  return train(
    experiment,
    operative,
    workdir=place(args.workdir),
    skip_preflight=args.skip_preflight,
    extend=args.extend,
    profile=args.profile,
  )


def header(experiment: Any, *, skip_preflight: bool) -> str:
  """What is about to run."""
  from opd_jax.planning import memory

  plan = memory.plan(experiment)
  model, student = experiment.model, experiment.student
  lines = [
    f'model    {model.family}, {model.num_layers} layers x {model.width}, {plan.parameters:,} parameters in '
    f'{student.param_dtype}, computed in {student.dtype}, from {experiment.weights or f"seed {experiment.seed}"}',
    *(
      []
      if experiment.lora is None
      else [f'lora     {plan.trained:,} of them are trained; {experiment.lora}']
    ),
    f'layout   {memory.devices_of(experiment)}; {units.memory(plan.bytes_per_device)} of parameters on each',
  ]
  for stage in experiment.stages:
    parts, unknown = memory.held(experiment, stage)._asdict(), memory.unknown(experiment, stage)
    lines += [*_stage(stage), f'  holds  {console.held(parts, unknown)}']
    for weights, where, size in memory.apart(experiment, stage):
      lines.append(f'  apart  {weights} holds {units.memory(size)} on each device of {where}')
    if stage.staleness:
      lines.append(f'  ahead  text is written by weights {stage.staleness} batches older')
  writing = experiment.writing_layout
  if writing.size('embed') > 1 and any(stage.mix.needs_student for stage in experiment.stages):
    lines.append(
      f'warning: responses are written on a layout that cuts weights by width into {writing.size("embed")}: all of '
      'them are sent for every token. Bind experiment.Experiment.sampling_layout, e.g. experiments/layouts/pod.gin'
    )
  if skip_preflight:
    lines.append('preflight skipped, as asked')
  return '\n'.join(lines)


def _stage(stage: Any) -> list[str]:
  from opd_jax import ramps
  from opd_jax.judges.spec import named_parts

  rows, budget = stage.prompts * stage.samples, stage.sampling.budget
  judges = [
    f'  judge  {part}: {judge.source}'
    for name in stage.asked
    for part, judge in named_parts(name, stage.judges[name])
  ]
  judges += [f'  author teacher: {stage.author.source}'] if stage.author is not None else []
  first = ramps.settled(stage.mix, 0)  # the writers' parts may move
  writers = {name: getattr(first, name) for name in ('student', 'teacher', 'data')}
  shares = ' and '.join(f'{share:.0%} {name}' for name, share in writers.items() if share > 1e-6)
  return [
    f'stage    {stage.name}: {stage.steps} steps of {stage.prompts} prompts x {stage.samples}, at most {budget} tokens '
    f'each: {stage.steps * rows * budget:,} tokens at most',
    f'  method {stage.method.paper}; learns from {shares}',
    *judges,
  ]


def train(
  experiment: Any,
  operative: str,
  *,
  workdir: Any,
  skip_preflight: bool = False,
  extend: bool = False,
  profile: range | None = None,
) -> int:
  """Runs to the end, to a signal, or to where a rule of the experiment stops it; returns the exit status.

  Signals are told as shells count them.
  """
  import jax

  from opd_jax import programs
  from opd_jax.training import loop

  chief = jax.process_index() == 0
  say = (lambda text: print(text, flush=True)) if chief else (lambda text: None)
  programs.keep(say)
  say(header(experiment, skip_preflight=skip_preflight))
  began = time.monotonic()
  with console.RunLine('training') as line:
    shown: dict[str, Any] = {}
    if chief:
      shown = {'progress': line.progress, 'status': line.status, 'findings': check.show}
    listener = loop.Listener(say=say, **shown)
    outcome = loop.train(
      experiment,
      workdir,
      config=operative,
      listener=listener,
      skip_preflight=skip_preflight,
      extend=extend,
      profile=profile,
      finish=lambda state: _write_student(experiment, state, workdir),
    )
  if outcome.signal:
    say(f'go on with: opd {" ".join(map(shlex.quote, sys.argv[1:]))}')
    return SIGNALLED + outcome.signal
  if chief:
    _last_words(workdir, time.monotonic() - began)
  if outcome.stopped:
    student = shlex.quote(f'WEIGHTS = "{workdir / STUDENT}"')
    say(
      'stopped by a rule of the experiment; everything is saved. To go on from these weights, mend what was wrong and '
      f'take another --workdir: --gin_bindings {student}'
    )
  return STOPPED if outcome.stopped else 0


def _write_student(experiment: Any, state: Any, workdir: Any) -> None:
  """Folders with the trained model and its adapters, in place of those that an earlier call wrote."""
  from opd_jax.processes import first_does
  from opd_jax.storage import peft, places
  from opd_jax.training import student_folder

  folder, beside = workdir / STUDENT, workdir / ADAPTER
  for old in (folder, beside):
    first_does(lambda old=old: places.remove(old))
  student_folder.save(experiment, state, folder)
  if experiment.lora is not None:
    student, layout, base = experiment.student, experiment.layout, experiment.weights
    companions = student_folder.companions_of(experiment)
    peft.save(beside, student, layout, state.params, base=base, companions=companions)


def _last_words(workdir: Any, seconds: float) -> None:
  from opd_jax.storage import places
  from opd_jax.training import recorder

  with places.spooled(workdir, ('metrics.jsonl',)) as spool:
    rows = recorder.read(spool.folder)
  names = dict.fromkeys(name for row in rows for name in row if '/avg@' in name)
  for name in names:
    values = [row[name] for row in rows if name in row]
    print(f'{name.removeprefix("eval/")}: {values[0]:.1%} before, {values[-1]:.1%} after')
  trained = [row for row in rows if 'loss' in row]
  if trained:
    verbs = ('sample', 'score', 'weigh', 'update')
    spent = {verb: sum(row[f'time/{verb}'] for row in trained) for verb in verbs}
    whole = max(sum(spent.values()), 1e-9)
    print(
      f'{len(trained)} steps; ' + ', '.join(f'{verb} {spent[verb] / whole:.0%}' for verb in verbs)
    )
  print(
    f'{seconds:.0f} s. {workdir / "metrics.jsonl"}, {workdir / "samples.jsonl"}, the student: {workdir / STUDENT}'
  )
  print(f'curves and responses on a page: opd report {shlex.quote(str(workdir))}')
