"""The first science: methods on *sums* from a weak and a strong student, over seeds; and bfloat16 against float32.

    python benchmarks/science.py methods [FOLDER] [SEEDS]        five seeds by default
    python benchmarks/science.py precision [FOLDER] [SEEDS]

Each seed has students of its own (initial weights, order of the data, rollouts); one teacher, of seed 0, serves all,
and the held-out problems are the same. A method's rate is the best of its RATES on those problems for two further
seeds, which are not in the table. What is done in FOLDER is not done again.
"""

import multiprocessing
import os
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from pathlib import Path

ROOT = Path(__file__).parent.parent / 'experiments'
SAMPLED, WHOLE = (
  (3e-5, 1e-4, 3e-4),
  (3e-4, 1e-3, 3e-3),
)  # what is learned: a sampled advantage; whole distributions
RATES = {
  'opd': SAMPLED, 'exopd': SAMPLED, 'iw_opd': SAMPLED, 'opd_plus': SAMPLED, 'aopd': WHOLE, 'gkd': WHOLE, 'seqkd': WHOLE
}  # fmt: skip
STUDENTS = {'weak': 100, 'strong': 200}  # steps of SFT
TEACHER_STEPS, STEPS, PROBLEMS = 300, 60, 512
WARM, DISTILLED = 100, 100  # of the comparison of precisions
PROCESSES = 2
ACCURACY = 'eval/sums/avg@1'
SFT, COMMON = ('methods/sft.gin',), ('models/small.gin', 'data/sums.gin')


def built(files: Sequence[str], bindings: Sequence[str], seed: int):
  from opd_jax import configuration

  bindings = (
    *bindings, f'experiment.Experiment.seed = {seed}', f'evaluator.Evaluation.problems = {PROBLEMS}',
    'evaluator.Evaluation.every = 1000', 'experiment.Experiment.checkpoint_every = 1000',
  )  # fmt: skip
  return configuration.build([str(ROOT / file) for file in (*COMMON, *files)], bindings)


def trained(experiment, config: str, workdir: Path) -> None:
  """A run with its student beside it, unless that is there."""
  from opd_jax.storage import orbax_folder
  from opd_jax.training import loop

  if (workdir / 'student').exists():
    return
  began = time.monotonic()
  listener = loop.Listener(say=lambda text: None)
  outcome = loop.train(experiment, workdir, config=config, skip_preflight=True, listener=listener)
  shutil.rmtree(workdir / 'part', ignore_errors=True)
  orbax_folder.save(workdir / 'part', experiment.model, outcome.state.params)
  (workdir / 'part').rename(workdir / 'student')
  print(
    f'{workdir}: {time.monotonic() - began:.0f} s, {ends(workdir)[1]:.1%}',
    file=sys.stderr,
    flush=True,
  )


def ends(workdir: Path) -> tuple[float, float]:
  """Accuracy before and after."""
  from opd_jax.training import recorder

  found = [row[ACCURACY] for row in recorder.read(workdir) if ACCURACY in row]
  return found[0], found[-1]


def last(workdir: Path, name: str) -> float:
  """Mean of a metric over the last ten steps."""
  from opd_jax.training import recorder

  return statistics.fmean([row[name] for row in recorder.read(workdir) if name in row][-10:])


def sft(workdir: Path, seed: int, steps: int) -> None:
  trained(*built(SFT, [f'STEPS = {steps}'], seed), workdir)


def distil(folder: Path, student: str, method: str, rate: float, seed: int) -> None:
  bindings = _judged(folder), f'WEIGHTS = "{folder}/{student}{seed}/student"', f'RATE = {rate}'
  files = f'methods/{method}.gin', 'judges/teacher.gin'
  trained(
    *built(files, [*bindings, f'STEPS = {STEPS}'], seed), where(folder, student, method, rate, seed)
  )


def where(folder: Path, student: str, method: str, rate: float, seed: int) -> Path:
  return folder / f'{student}{seed}-{method}-{rate:g}'


def _judged(folder: Path) -> str:
  return f'TEACHER = "{folder}/teacher/student"'


def interval(values: Sequence[float]) -> str:
  """Mean and half of its 95 % interval (Student's t), in points."""
  from scipy.stats import t

  spread = t.ppf(0.975, len(values) - 1) * statistics.stdev(values) / len(values) ** 0.5
  return f'{100 * statistics.fmean(values):.1f} ± {100 * spread:.1f}'


def everywhere(pool, jobs) -> None:
  for future in [pool.submit(*job) for job in jobs]:
    future.result()


def methods(folder: Path, seeds: int, pool) -> None:
  from opd_jax.commands import console

  everywhere(pool, [(sft, folder / 'teacher', 0, TEACHER_STEPS)])
  apart = seeds + 1, seeds + 2  # seeds that only choose rates
  everywhere(
    pool,
    [
      (sft, folder / f'{name}{seed}', seed, steps)
      for name, steps in STUDENTS.items()
      for seed in range(1, seeds + 3)
    ],
  )
  trials = [
    (student, method, rate)
    for student in STUDENTS
    for method, rates in RATES.items()
    for rate in rates
  ]
  everywhere(pool, [(distil, folder, *trial, seed) for trial in trials for seed in apart])
  tried = {
    trial: statistics.fmean(ends(where(folder, *trial, seed))[1] for seed in apart)
    for trial in trials
  }
  best = {
    (student, method): max(rates, key=lambda rate: tried[student, method, rate])
    for student in STUDENTS
    for method, rates in RATES.items()
  }
  runs = [(*pair, rate, seed) for pair, rate in best.items() for seed in range(1, seeds + 1)]
  everywhere(pool, [(distil, folder, *run) for run in runs])
  teacher = ends(folder / 'teacher')[1]
  print(
    f'sums: teacher {teacher:.1%}; {STEPS} steps of 64 prompts; {PROBLEMS} held-out problems, greedy; {seeds} seeds'
  )
  for student in STUDENTS:
    of = {
      method: [
        where(folder, student, method, best[student, method], seed) for seed in range(1, seeds + 1)
      ]
      for method in RATES
    }
    before = [ends(run)[0] for run in of['opd']]
    after = {method: [ends(run)[1] for run in found] for method, found in of.items()}
    less = lambda one, other: interval([a - b for a, b in zip(one, other, strict=True)])
    print(f'\n{student} student, {STUDENTS[student]} steps of SFT: {interval(before)} % before')
    console.table(
      ('method', 'rate', 'rates tried', 'accuracy after, %', 'gain', 'more than OPD', 'entropy where it learned'),
      [
        (
          method, f'{best[student, method]:g}',
          ' '.join(f'{rate:g}: {100 * tried[student, method, rate]:.0f}' for rate in RATES[method]),
          interval(after[method]), less(after[method], before),
          '' if method == 'opd' else less(after[method], after['opd']),
          f'{statistics.fmean(last(run, "entropy") for run in of[method]):.2f}',
        )
        for method in RATES
      ],
    )  # fmt: skip


def two_stages(folder: Path, dtype: str, seed: int) -> None:
  """SFT, then AOPD, computed in a type; masters are float32 in both."""
  typed = f"presets.tiny.dtype = '{dtype}'"
  first, _ = built(SFT, [typed, f'STEPS = {WARM}'], seed)
  bindings = [typed, _judged(folder), f'STEPS = {DISTILLED}', 'RATE = 3e-4']
  second, config = built(('methods/aopd.gin', 'judges/teacher.gin'), bindings, seed)
  stages = replace(first.stages[0], name='warm'), replace(second.stages[0], name='distil')
  trained(replace(second, stages=stages), config, folder / f'{dtype}{seed}')


def precision(folder: Path, seeds: int, pool) -> None:
  from opd_jax.commands import console

  everywhere(pool, [(sft, folder / 'teacher', 0, TEACHER_STEPS)])
  types = 'float32', 'bfloat16'
  everywhere(
    pool, [(two_stages, folder, dtype, seed) for seed in range(1, seeds + 1) for dtype in types]
  )
  of = {dtype: [folder / f'{dtype}{seed}' for seed in range(1, seeds + 1)] for dtype in types}
  print(
    f'sums: {WARM} steps of SFT, then {DISTILLED} of AOPD; float32 masters; {PROBLEMS} problems; {seeds} seeds'
  )
  points = lambda values: ' '.join(f'{100 * value:.1f}' for value in values)
  after = {dtype: [ends(run)[1] for run in of[dtype]] for dtype in types}
  console.table(
    ('computed in', 'accuracy after, %', 'of each seed', 'loss', 'sampler - scorer, nats'),
    [
      (dtype, interval(after[dtype]), points(after[dtype]),
       *(f'{statistics.fmean(last(run, name) for run in of[dtype]):.4f}' for name in ('loss', 'gap')))
      for dtype in types
    ],
  )  # fmt: skip
  apart = [half - full for half, full in zip(after['bfloat16'], after['float32'], strict=True)]
  print(f'bfloat16 less float32, seed by seed: {interval(apart)} points')


if __name__ == '__main__':
  os.environ['JAX_PLATFORMS'] = 'cpu'
  what = {'methods': methods, 'precision': precision}[
    sys.argv[1] if len(sys.argv) > 1 else 'methods'
  ]
  place = Path(sys.argv[2] if len(sys.argv) > 2 else tempfile.mkdtemp())
  os.environ.setdefault('JAX_COMPILATION_CACHE_DIR', str(place / 'cache'))
  os.environ.setdefault('JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS', '0')
  count = int(sys.argv[3]) if len(sys.argv) > 3 else 5
  if count < 2:
    raise SystemExit('an interval needs two seeds at least')
  with ProcessPoolExecutor(PROCESSES, mp_context=multiprocessing.get_context('spawn')) as workers:
    what(place, count, workers)
