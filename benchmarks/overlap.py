"""A teacher on devices of its own: who stands idle, by a roofline and as measured, and what older text costs.

    python benchmarks/overlap.py plan [RECIPE CHIPS CHIP]        every share of the chips; 8B from 32B, 64 v5p
    python benchmarks/overlap.py measure [STEPS]                 eight simulated devices, staleness 0 and 1
    python benchmarks/overlap.py curves FOLDER [SEEDS STEPS]     accuracy on *sums* with staleness 0, 1 and 4

The plan takes batches of equal length, and batches whose times are spread by a third (log-normal, seed 0). FOLDER has
`teacher` and `weak`, students that `opd train` wrote.
"""

import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np

ROOT = Path(__file__).parent.parent
SUMS = ('models/small.gin', 'data/sums.gin', 'methods/async_opd.gin')
SPREAD = 0.33


def plan(recipe: str = 'qwen3_8b_from_32b', chips: int = 64, chip: str = 'v5p') -> None:
  """Idle shares of every split in eighths, and the tokens that a second is worth."""
  import jax

  jax.config.update('jax_platforms', 'cpu')
  jax.config.update('jax_num_cpu_devices', chips)
  from opd_jax.configuration import build
  from opd_jax.planning import overlap
  from opd_jax.planning.flops import CHIPS

  unlike = np.exp(np.random.RandomState(0).normal(0, SPREAD, 512)).tolist()
  print(f'{recipe} on {chips} {chip}: student + teacher, seconds of a step, idle student / teacher')
  for eighths in range(1, 8):
    own = chips * eighths // 8
    lines = [
      f'STUDENT_DEVICES = {own}', f'TEACHER_DEVICES = {chips - own}', 'PROMPTS = 64',
      'experiment.Experiment.sampling_layout = @writing/sharding.mesh_layout()',
      'writing/sharding.mesh_layout.data = -1', 'writing/sharding.mesh_layout.fsdp = 1',
      'writing/sharding.mesh_layout.tensor = 4', 'SAMPLES = 8', 'BUDGET = 16384', 'SLOTS = 512',
    ]  # fmt: skip
    files = [
      ROOT / 'experiments' / name for name in (f'recipes/{recipe}.gin', 'judges/teacher_apart.gin')
    ]
    experiment, _ = build([*map(str, files)], lines)
    stage = experiment.stages[-1]
    times = overlap.times_of(experiment, stage, CHIPS[chip], 0.4, {})
    cells = []
    for staleness, factors in ((0, None), (1, None), (1, unlike), (2, unlike), (4, unlike)):
      shares = overlap.idle(times, staleness, *([] if factors is None else [factors]))
      label = f'{staleness}{"" if factors is None else " unlike"}'
      cells.append(f'{label}: {" / ".join(f"{share:.0%}" for share in shares.values())}')
    judged = sum(times.judges.values())
    took = f'write {times.write:5.1f} learn {times.update:5.1f} score {judged:5.1f}'
    print(f'{own:3} + {chips - own:3}  {took}   {"   ".join(cells)}')


def trained(words: list[str], devices: int) -> None:
  environment = {**os.environ, 'JAX_PLATFORMS': 'cpu', 'PYTHONPATH': str(ROOT)}
  environment['JAX_NUM_CPU_DEVICES'] = str(devices)
  command = [sys.executable, '-m', 'opd_jax.cli', 'train', *words]
  done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
  if done.returncode:
    raise SystemExit(done.stdout + done.stderr)


def words_of(files: tuple[str, ...], bindings: list[str], workdir: Path) -> list[str]:
  return [
    *(word for file in files for word in ('--gin_file', f'experiments/{file}')),
    *(word for binding in bindings for word in ('--gin_bindings', binding)),
    *('--workdir', str(workdir)),
  ]


def _teacher(folder: Path) -> Path:
  """One of random weights, eight times as much work as the student."""
  import jax

  from opd_jax.data.tiny_worlds import sums
  from opd_jax.models import presets, transformer
  from opd_jax.sharding import mesh_layout
  from opd_jax.storage import orbax_folder

  if not folder.exists():
    config = presets.tiny(width=256, num_layers=8, mlp_width=512, vocab_size=64)
    params = transformer.init(config, mesh_layout(), jax.random.key(1))
    orbax_folder.save(folder, config, params, strings=sums.tokenizer().strings())
  return folder


def measure(steps: int = 24) -> None:
  """Both meshes have two cores between them, so this shows who waits, not how fast it becomes."""
  from opd_jax.training import recorder

  with tempfile.TemporaryDirectory() as name:
    for staleness in (0, 1):
      bindings = [
        f'TEACHER = "{_teacher(Path(name) / "teacher")}"', 'PROMPTS = 32', f'STEPS = {steps}',
        f'experiment.Stage.staleness = {staleness}', 'experiment.Stage.updates = 1',
        'evaluator.Evaluation.every = 1000', 'evaluator.Evaluation.problems = 8',
        'experiment.Stage.rows = 32', 'RATE = 1e-5',
      ]  # fmt: skip
      workdir = Path(name) / str(staleness)
      trained(words_of((*SUMS, 'judges/teacher_apart.gin'), bindings, workdir), 8)
      rows = [row for row in recorder.read(workdir) if 'loss' in row][steps // 2 :]
      mean = lambda key, rows=rows: statistics.median(row[key] for row in rows)
      seconds = mean('time/sample') + mean('time/score') + mean('time/weigh') + mean('time/update')
      print(
        f'staleness {staleness}: a step {seconds:.2f} s, score {mean("time/score"):.3f} s; idle student '
        f'{mean("time/idle/student"):.0%}, teacher {mean("time/idle/teacher"):.0%}'
      )


def curves(folder: str, seeds: int = 3, steps: int = 40) -> None:
  """Held-out accuracy and reverse KL at the end: mean ± standard deviation over seeds."""
  from opd_jax.training import recorder

  at = Path(folder).absolute()
  for staleness in (0, 1, 4):
    ends: dict[str, list[float]] = {}
    for seed in range(seeds):
      bindings = [
        f'TEACHER = "{at / "teacher" / "student"}"', f'WEIGHTS = "{at / "weak" / "student"}"',
        f'STEPS = {steps}', 'RATE = 1e-4', f'experiment.Stage.staleness = {staleness}',
        'experiment.Stage.updates = 1', f'experiment.Experiment.seed = {seed}',
        f'evaluator.Evaluation.every = {max(steps // 4, 1)}',
      ]  # fmt: skip
      workdir = at / f'staleness{staleness}_seed{seed}'
      trained(words_of((*SUMS, 'judges/teacher.gin'), bindings, workdir), 1)
      rows = recorder.read(workdir)
      for key in ('eval/sums/avg@1', 'eval/sums/reverse_kl'):
        for row in rows:
          if key in row:
            ends.setdefault(f'{key} step {row["step"]}', []).append(row[key])
      losses = [abs(row['log_ratio']) for row in rows if 'loss' in row][-steps // 4 :]
      ends.setdefault('|log_ratio|, last quarter', []).append(statistics.mean(losses))
    for key, values in ends.items():
      spread = statistics.stdev(values) if len(values) > 1 else 0.0
      print(
        f'staleness {staleness}  {key}: {statistics.mean(values):.4f} ± {spread:.4f}', flush=True
      )


if __name__ == '__main__':
  what, *more = sys.argv[1:] or ['plan']
  numbers = [int(each) if each.isdigit() else each for each in more]
  {'plan': plan, 'measure': measure, 'curves': curves}[what](*numbers)
