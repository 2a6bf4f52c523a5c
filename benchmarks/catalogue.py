"""Every method for twenty steps on *sums*, from its gin file: loss, distance to the teacher, CPU seconds a step.

    python benchmarks/catalogue.py [FOLDER [METHOD …]]

A student that gets some answers right (STUDENT_STEPS of SFT) learns from a teacher that gets most of them right. The
reverse KL is that of the held-out problems' answers, before and after. What is in FOLDER is not done again; without
names, all methods run in PROCESSES processes and the table is printed. CPU seconds, because machines are shared: of
both cores, the mean of the last ten steps.
"""

import json
import math
import os
import statistics
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

EXPERIMENTS = Path(__file__).parent.parent / 'experiments'
STUDENT_STEPS, TEACHER_STEPS, STEPS, PROCESSES = 160, 300, 20, 2
KL = 'eval/sums/reverse_kl'
COMMON = ('models/small.gin', 'data/sums.gin')
BINDINGS = (
  f'STEPS = {STEPS}', 'PROMPTS = 8', 'SAMPLES = 4', 'RATE = 1e-4', 'evaluator.Evaluation.every = 1000',
  'evaluator.Evaluation.problems = 128', 'evaluator.Evaluation.decoding = @decoding.Decoding()',
)  # fmt: skip


def silent(text: str) -> None:
  pass


def build(files, bindings):
  from opd_jax import configuration

  return configuration.build([str(EXPERIMENTS / file) for file in (*COMMON, *files)], bindings)


def trained(folder: Path, name: str, steps: int, seed: int) -> None:
  """A student by SFT, unless it is there."""
  from opd_jax.storage import orbax_folder
  from opd_jax.training import loop

  if (folder / name / 'student').exists():
    return
  bindings = (
    f'STEPS = {steps}', f'experiment.Experiment.seed = {seed}', 'evaluator.Evaluation.every = 1000',
  )  # fmt: skip
  experiment, config = build(('methods/sft.gin',), bindings)
  outcome = loop.train(experiment, folder / name, config=config, listener=loop.Listener(say=silent))
  orbax_folder.save(folder / name / 'student', experiment.model, outcome.state.params)


def measure(folder: Path, name: str) -> None:
  """Twenty steps of a method; what was seen is left in FOLDER as one file."""
  from opd_jax.training import loop, recorder
  from opd_jax.training.alarms import Alarm

  bindings = [
    *BINDINGS,
    f'TEACHER = "{folder}/teacher/student"',
    f'WEIGHTS = "{folder}/weak/student"',
  ]
  files = (f'methods/{name}.gin', 'judges/teacher.gin')
  clock, row = [], {'name': name}
  listener = loop.Listener(
    say=silent, progress=lambda done, total, text: clock.append(time.process_time())
  )
  experiment, config = build(files, bindings)
  try:
    loop.train(experiment, folder / name, config=config, listener=listener, skip_preflight=True)
  except Alarm as error:
    row['error'] = str(error).splitlines()[0]
  rows = recorder.read(folder / name) if (folder / name).exists() else []
  losses = [each['loss'] for each in rows if 'loss' in each]
  distances = [each[KL] for each in rows if KL in each]
  row |= {'losses': losses, 'distances': distances}
  row['seconds'] = statistics.mean(
    [b - a for a, b in zip(clock[-11:], clock[-10:], strict=False)] or [math.nan]
  )
  (folder / f'{name}.json').write_text(json.dumps(row))


def shown(row: dict) -> str:
  """One line of the table."""
  losses, distances = row['losses'], row['distances']
  number = lambda values, at: f'{values[at]:.4g}' if values else '-'
  said = row.get('error', '')
  if not said and losses and not all(map(math.isfinite, losses)):
    said = 'not finite'
  if not said and len(distances) > 1 and distances[-1] > 1.1 * distances[0]:
    said = 'further from the teacher'
  return (
    f'| {row["name"]} | {number(losses, 0)} | {number(losses, -1)} | {number(distances, 0)} | '
    f'{number(distances, -1)} | {row["seconds"]:.2f} | {said} |'
  )


def main(folder: Path, names: list[str]) -> None:
  folder.mkdir(parents=True, exist_ok=True)
  if names[:1] == ['--sft']:
    trained(folder, names[1], *map(int, names[2:]))
    return
  for name in names:
    measure(folder, name)
  if names:
    return
  from opd_jax.methods import discover

  models = ('teacher', TEACHER_STEPS, 0), ('weak', STUDENT_STEPS, 1)
  methods = [entry.name for entry in discover()]
  missing = [name for name in methods if not (folder / f'{name}.json').exists()]
  environment = {
    **os.environ,
    'JAX_PLATFORMS': 'cpu',
    'JAX_COMPILATION_CACHE_DIR': str(folder / 'programs'),  # most programs serve every method
    'JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS': '0',
  }
  run = lambda names: subprocess.run(
    [sys.executable, __file__, str(folder), *map(str, names)], env=environment
  )
  with ThreadPoolExecutor(PROCESSES) as pool:
    list(pool.map(run, [('--sft', *model) for model in models]))
    list(pool.map(run, [(name,) for name in missing]))
  print('| method | loss, step 1 | step 20 | reverse KL before | after | CPU s a step | |')
  print('|---|---|---|---|---|---|---|')
  for name in methods:
    file = folder / f'{name}.json'
    print(
      shown(json.loads(file.read_text()))
      if file.exists()
      else f'| {name} | - | - | - | - | - | failed |'
    )


if __name__ == '__main__':
  main(Path(sys.argv[1] if len(sys.argv) > 1 else tempfile.mkdtemp()).absolute(), sys.argv[2:])
