"""Floor 6. `opd demo`: trains a teacher and a weak student, then distils with two methods, in a few minutes."""

import argparse
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from opd_jax.commands import console
from opd_jax.commands.train import STUDENT, train

HELP = (
  'a teacher, a weak student, OPD and AOPD on sums, a table and a picture: minutes on two cores'
)
EPILOG = None
FILES = ['experiments/models/small.gin', 'experiments/data/sums.gin']
TEACHER_STEPS, STUDENT_STEPS, STEPS = 300, 150, 60
ACCURACY = 'eval/sums/avg@1'
RATES = {'opd': 1e-4, 'aopd': 3e-4}  # each the best of those tried: OPD 1e-4, 3e-4; AOPD 3e-4, 1e-3


def add_flags(parser: argparse.ArgumentParser) -> None:
  parser.add_argument('--workdir', default='runs/demo', metavar='DIR', help='default: runs/demo')


def run(args: argparse.Namespace) -> int:
  from opd_jax import host

  host.keep_memory()
  return demo(Path(args.workdir))


def demo(workdir: Path) -> int:
  """Runs or resumes the four runs, then prints a table of their metrics and draws them; returns the exit status."""
  from opd_jax.configuration import build
  from opd_jax.training import recorder

  began = time.monotonic()
  missing = [file for file in FILES if not Path(file).is_file()]
  if missing:
    raise ValueError(f'demo: {missing[0]} is not here. Run it from the root of the repository.')
  warm = [*FILES, 'experiments/methods/sft.gin']
  plans = {
    'teacher': (warm, [f'STEPS = {TEACHER_STEPS}']),
    'student': (warm, [f'STEPS = {STUDENT_STEPS}', 'experiment.Experiment.seed = 1']),
  }
  for method, rate in RATES.items():
    plans[method] = (
      [*FILES, f'experiments/methods/{method}.gin', 'experiments/judges/teacher.gin'],
      [f'TEACHER = "{workdir / "teacher" / STUDENT}"', f'WEIGHTS = "{workdir / "student" / STUDENT}"',
       f'STEPS = {STEPS}', f'RATE = {rate}', 'evaluator.Evaluation.every = 20'],
    )  # fmt: skip
  runs: dict[str, list[dict[str, Any]]] = {}
  for number, (name, (files, bindings)) in enumerate(plans.items(), start=1):
    print(f'\n=== {number} of {len(plans)}: {name}', flush=True)
    if status := train(*build(files, bindings), workdir=workdir / name):
      return status
    runs[name] = recorder.read(workdir / name)
  _report(runs, workdir, time.monotonic() - began)
  return 0


def _report(runs: Mapping[str, list[dict[str, Any]]], workdir: Path, seconds: float) -> None:
  ends = lambda name: [row for row in runs[name] if ACCURACY in row]
  last = lambda name, key: [row[key] for row in runs[name] if key in row][-1]
  print('\nsums: 128 held-out problems, greedy')
  rows = [
    (name, len([row for row in runs[name] if 'loss' in row]), f'{ends(name)[0][ACCURACY]:.1%}',
     f'{ends(name)[-1][ACCURACY]:.1%}', f'{last(name, "entropy"):.3f}', f'{last(name, "grad_norm"):.2f}')
    for name in runs
  ]  # fmt: skip
  console.table(('run', 'steps', 'accuracy before', 'after', 'entropy', 'gradient norm'), rows)
  student_accuracy = ends('student')[-1][ACCURACY]
  for name in RATES:
    gain = ends(name)[-1][ACCURACY] - student_accuracy
    print(
      f'{name}: {gain:+.1%} in {STEPS} steps on what the student wrote itself, scored by the teacher'
    )
  picture = _draw(runs, workdir / 'demo.png')
  print(f'{seconds:.0f} s. Everything is in {workdir}/{picture}')


def _draw(runs: Mapping[str, list[dict[str, Any]]], file: Path) -> str:
  try:
    import matplotlib
  except ImportError:
    return " (no picture: pip install 'opd_jax[plot]')"
  matplotlib.use('Agg')
  from matplotlib import pyplot

  figure, axes = pyplot.subplots(1, 3, figsize=(12, 3.6), layout='constrained')
  for axis, key, title in zip(
    axes,
    (ACCURACY, 'entropy', 'grad_norm'),
    ('accuracy', 'entropy, nats', 'gradient norm'),
    strict=True,
  ):
    for name, rows in runs.items():
      points = [(row['step'], row[key]) for row in rows if key in row]
      axis.plot(*zip(*points, strict=True), label=name, linewidth=1.2)
    axis.set_title(title)
    axis.set_xlabel('step')
  axes[2].set_yscale('log')
  axes[0].legend(frameon=False)
  figure.savefig(file, dpi=130)
  pyplot.close(figure)
  return f'; the picture: {file}'
