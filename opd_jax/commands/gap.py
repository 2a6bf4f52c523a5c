"""Floor 6. `opd gap`: what a teacher that sees more is worth before training, and the law that predicts the gain."""

import argparse
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from opd_jax.commands import console, flags

HELP = 'the gap between student and teacher before training, and the law that predicts the gain'
EPILOG = """\
  opd gap --gin_file experiments/recipes/sdft.gin --gin_bindings 'WEIGHTS = "runs/reads/student"' --workdir runs/sdft
  opd gap --fit runs/sdft runs/opsd runs/sdpo

The first asks the student and its teacher, behind what its context shows, the problems of an evaluation with the
decoding of training: accuracies, the gap between them, and exact divergences a token on the student's text. With
--workdir it is kept as gap.json beside the run that `opd train` makes of the same files. The second fits
gain = a gap + b (arXiv:2605.30070) to finished runs: the gap of gap.json, and the gain from the first to the last
evaluation in metrics.jsonl.
"""
FILE = 'gap.json'


def add_flags(parser: argparse.ArgumentParser) -> None:
  flags.add_gin(parser)
  add = parser.add_argument
  add('--fit', nargs='+', metavar='DIR', help='workdirs of finished runs with a gap.json each')
  add('--workdir', metavar='DIR', help='of the run; gap.json is written there')
  add('--stage', metavar='NAME', help='whose teacher; default: the first stage that has one')
  add('--evaluation', metavar='NAME', help='whose problems and gain; default: the first one')
  add('--samples', type=flags.count, default=4, metavar='K', help='of each problem; default: 4')
  add('--metric', metavar='NAME', help='for --fit; default: eval/EVALUATION/avg@… of gap.json')
  flags.add_json(parser)


def run(args: argparse.Namespace) -> None:
  if args.fit is not None:
    if args.gin_file or args.gin_bindings or args.workdir:
      raise ValueError('gap: --fit reads finished runs; leave out the gin files and --workdir.')
    return _fit([Path(folder) for folder in args.fit], args.metric, as_json=args.json)
  _measure(args)


# --- one run ----------------------------------------------------------------------------------------


def _measure(args: argparse.Namespace) -> None:
  from opd_jax.configuration import build
  from opd_jax.storage.places import write_whole
  from opd_jax.training import gap
  from opd_jax.training.runtime import build_runtime
  from opd_jax.training.state import begin, initial_state

  experiment, _ = build(args.gin_file, args.gin_bindings, flags.trust_of(args))
  number = _stage(experiment.stages, args.stage)
  evaluation = _evaluation(experiment.evaluations, args.evaluation)
  problems, say = evaluation.chosen, (lambda text: None) if args.json else print
  runtime = build_runtime(experiment, number, say)
  _check(runtime, problems)
  base, params = begin(experiment, say)
  state = initial_state(experiment, runtime.stage, params, base)
  found = gap.measure(runtime, state, evaluation.task, problems, samples=args.samples)
  record = {name: _plain(value) for name, value in found._asdict().items()}
  record |= {'evaluation': evaluation.label, 'stage': runtime.stage.name, 'seed': experiment.seed}
  if args.workdir is not None:
    Path(args.workdir).mkdir(parents=True, exist_ok=True)
    write_whole(Path(args.workdir) / FILE, json.dumps(record, indent=1) + '\n')
  if args.json:
    print(json.dumps(record, indent=2))
    return
  console.table(('', evaluation.label), _rows(found))


def _plain(value: float | int) -> float | int | None:
  return value if math.isfinite(value) else None


def _rows(found: Any) -> list[tuple[str, str]]:
  known = lambda value, text: text if math.isfinite(value) else '–'
  return [
    ('student', f'{found.student:.1%}'),
    ('teacher, behind what it is shown', f'{found.teacher:.1%}'),
    ('gap', f'{found.gap:+.1%}'),
    ('95 % interval', known(found.low, f'{found.low:+.1%} to {found.high:+.1%}')),
    ('KL(student ‖ teacher), nats a token', known(found.reverse_kl, f'{found.reverse_kl:.4f}')),
    ('KL(teacher ‖ student)', known(found.forward_kl, f'{found.forward_kl:.4f}')),
    ('rows with something to show', f'{found.shown:.1%}'),
    ('problems x samples', f'{found.problems} x {found.samples}'),
  ]


def _stage(stages: Sequence[Any], name: str | None) -> int:
  """The stage whose teacher is measured."""
  wanted = [
    number
    for number, stage in enumerate(stages)
    if 'teacher' in stage.judges and name in (None, stage.name)
  ]
  if not wanted:
    which = '' if name is None else f' called {name}'
    raise ValueError(
      f'gap: no stage{which} has a teacher; there are {[stage.name for stage in stages]}. Bind JUDGES, e.g. '
      "{'teacher': @judges.itself()} with a context."
    )
  return wanted[0]


def _evaluation(evaluations: Sequence[Any], name: str | None) -> Any:
  """The evaluation whose problems are asked."""
  found = next((each for each in evaluations if name in (None, each.label)), None)
  if found is None:
    which = 'no evaluation' if name is None else f'no evaluation called {name}'
    raise ValueError(
      f'gap: there is {which}; there are {[each.label for each in evaluations]}. Bind Experiment.evaluations.'
    )
  if found.task.verify is None:
    raise ValueError(f'gap: the task {found.task.name} has no verifier, so nobody is accurate.')
  return found


def _check(runtime: Any, problems: Sequence[Any]) -> None:
  """Refuses, by its name, a problem that the stage could not use: it has no room, or no column that is shown."""
  from opd_jax.training.runtime import room

  fits = room(runtime.experiment, runtime.stage)
  for problem in problems:
    try:
      fits(problem)
    except ValueError as error:
      raise ValueError(f'gap: {problem.name}: {error}') from error


# --- many runs --------------------------------------------------------------------------------------


def _fit(folders: Sequence[Path], metric: str | None, *, as_json: bool) -> None:
  from opd_jax.studies import predictive_law

  points = [_point(folder, metric) for folder in folders]
  law = predictive_law.fit(*([point[name] for point in points] for name in ('gap', 'gain')))
  if as_json:
    plain = {
      name: [*map(_plain, value)] if isinstance(value, tuple) else _plain(value)
      for name, value in law._asdict().items()
    }
    print(json.dumps({'law': plain, 'runs': points}, indent=2))
    return
  rows = [
    (
      point['run'],
      f'{point["gap"]:+.1%}',
      f'{point["gain"]:+.1%}',
      f'{law.slope * point["gap"] + law.intercept:+.1%}',
    )
    for point in points
  ]
  console.table(('run', 'gap', 'gain', 'by the law'), rows)
  known = lambda value, text: text if math.isfinite(value) else 'not known from so few points'
  between = lambda ends: known(ends[0], f'95 % {ends[0]:+.3f} to {ends[1]:+.3f}')
  print('gain = a gap + b')
  print(f'a = {law.slope:.3f} ± {law.slope_error:.3f}, {between(law.slope_interval)}')
  print(f'b = {law.intercept:+.4f} ± {law.intercept_error:.4f}, {between(law.intercept_interval)}')
  print(f'R² {known(law.r_squared, f"{law.r_squared:.3f}")}, correlation {law.correlation:.3f}')
  print(f'error of a point left out: {known(law.left_out, f"{law.left_out:.3f}")}')


def _point(folder: Path, metric: str | None) -> dict[str, Any]:
  """The gap and the gain of a run."""
  from opd_jax.training import recorder

  if not (folder / 'student').is_dir():
    raise ValueError(f'gap: {folder} is not the workdir of a finished run: it has no student.')
  file = folder / FILE
  if not file.is_file():
    raise ValueError(
      f'gap: {folder} has no {FILE}. Measure it with the gin files of the run: opd gap --gin_file … --workdir {folder}'
    )
  try:
    record = json.loads(file.read_text())
    gap, evaluation = float(record['gap']), str(record['evaluation'])
  except (ValueError, KeyError, TypeError) as error:
    raise ValueError(
      f'gap: {file} is not what `opd gap` writes ({error}). Measure again.'
    ) from error
  rows = recorder.read(folder)
  names = dict.fromkeys(name for row in rows for name in row if name.startswith('eval/'))
  prefix = f'eval/{evaluation}/avg@'
  name = metric or next((each for each in names if each.startswith(prefix)), prefix + '…')
  values = [row[name] for row in rows if name in row]
  if len(values) < 2:
    raise ValueError(
      f'gap: {folder} has {len(values)} values of {name}, one before and one after training are needed; its '
      f'evaluations report {[*names]}.'
    )
  return {'run': str(folder), 'gap': gap, 'gain': values[-1] - values[0], 'metric': name}
