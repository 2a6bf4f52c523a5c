"""Floor 6. `opd train`: runs an experiment in a folder, or goes on with the one that is there."""

import shlex
import shutil
import sys
import time
from pathlib import Path

import jax

from opd_jax import console
from opd_jax.data.tokenizers import HubTokenizer
from opd_jax.processes import barrier
from opd_jax.storage import orbax_folder
from opd_jax.teachers import Routed
from opd_jax.training import loop, memory, metrics
from opd_jax.training.experiment import Experiment, Stage

STUDENT = 'student'  # the folder of the finished model, in the workdir


def header(experiment: Experiment, *, skip_preflight: bool) -> str:
  """What is about to run."""
  plan = memory.plan(experiment)
  model = experiment.model
  lines = [
    f'model    {model.family}, {model.num_layers} layers x {model.width}, {plan.parameters:,} parameters in '
    f'{model.param_dtype}, computed in {model.dtype}, from {experiment.weights or f"seed {experiment.seed}"}',
    f'layout   {memory.devices_of(experiment)}; {console.memory(plan.bytes_per_device)} of parameters on each',
  ]
  for stage in experiment.stages:
    lines += [*_stage(stage), f'  holds  {console.held(memory.held(experiment, stage)._asdict())}']
  if skip_preflight:
    lines.append('preflight skipped, as asked')
  return '\n'.join(lines)


def _stage(stage: Stage) -> list[str]:
  rows = stage.prompts * stage.samples
  table = lambda judge: judge.table if isinstance(judge, Routed) else (('', judge),)
  name = lambda route, judge: (
    (f'{route}: ' if route else '') + (judge.weights or 'the student itself')
  )
  judges = {
    who: ', '.join(name(*each) for each in table(judge)) for who, judge in stage.judges.items()
  }
  return [
    f'stage    {stage.name}: {stage.steps} steps of {stage.prompts} prompts x {stage.samples}, at most '
    f'{stage.sampling.budget} tokens each: {stage.steps * rows * stage.sampling.budget:,} tokens at most',
    f'  method {stage.method.paper}; learns from '
    + ' and '.join(f'{getattr(stage.method.rollout, who):.0%} {who}' for who in ('student', 'teacher', 'dataset')
                   if getattr(stage.method.rollout, who)),
    *(f'  judge  {who}: {what}' for who, what in judges.items()),
  ]  # fmt: skip


def train(experiment: Experiment, operative: str, *, workdir: Path, skip_preflight: bool) -> bool:
  """Runs to the end (True), or to SIGTERM."""
  chief = jax.process_index() == 0
  say = (lambda text: print(text, flush=True)) if chief else (lambda text: None)
  say(header(experiment, skip_preflight=skip_preflight))
  began = time.monotonic()
  with console.progress_bar('training') as bar:
    ears = loop.Listener(say=say, progress=bar if chief else loop.Listener().progress)
    outcome = loop.train(
      experiment, workdir, config=operative, ears=ears, skip_preflight=skip_preflight
    )
  if not outcome.finished:
    say(f'go on with: opd {" ".join(map(shlex.quote, sys.argv[1:]))}')
    return False
  folder = workdir / STUDENT
  if chief and folder.exists():
    shutil.rmtree(folder)
  barrier('the student before this one has left')
  tokenizer = experiment.tokenizer
  companions = tokenizer.folder if isinstance(tokenizer, HubTokenizer) else None
  orbax_folder.save(folder, experiment.model, outcome.state.params, companions=companions)
  if chief:
    _last_words(workdir, time.monotonic() - began)
  return True


def _last_words(workdir: Path, seconds: float) -> None:
  rows = metrics.read(workdir)
  tests = [row for row in rows if 'eval/accuracy' in row]
  if tests:
    print(
      f'accuracy {tests[0]["eval/accuracy"]:.1%} before, {tests[-1]["eval/accuracy"]:.1%} after'
    )
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
