"""Kills a run with `kill -9` at random moments, resumes it until it is done, and compares with an undisturbed one.

    python benchmarks/kill.py [KILLS]        20 of each by default; exit status 1 where anything differs

Three runs are killed: one with a frozen teacher, one in which everything moves (kill_moving.gin), and one that writes
batches ahead besides (kill_stale.gin). The moments fall anywhere: while it starts, in a step, inside the writing of a
checkpoint (there is one every step).
"""

import json
import os
import random
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).parent.parent
EXPERIMENTS = ROOT / 'experiments'
FROZEN = tuple(
  EXPERIMENTS / file
  for file in ('models/small.gin', 'data/sums.gin', 'methods/aopd.gin', 'judges/teacher.gin')
)
MOVING = (ROOT / 'benchmarks' / 'kill_moving.gin',)
STALE = (ROOT / 'benchmarks' / 'kill_stale.gin',)
SEED = 7
STEP, START = 0.6, 6.0  # seconds that a step and a start may take: how long a kill waits at most


class Ending(NamedTuple):
  """What two runs that are the same have in common."""

  metrics: list[str]  # without what belongs to the machine
  student: dict[str, int]  # fingerprint of its weights
  positions: list[
    Any
  ]  # of the checkpoints that were kept: what alarms, gates and numbers that move remember


def command(workdir: Path, files: Sequence[Path], steps: int) -> list[str]:
  bindings = [
    f'STEPS = {steps}', 'PROMPTS = 8', 'presets.tiny.width = 64',
    'experiment.Experiment.checkpoint_every = 1', 'evaluator.Evaluation.problems = 8',
    'evaluator.Evaluation.every = 2',
  ]  # fmt: skip
  if files == FROZEN:
    bindings.append(f'TEACHER = "{workdir.parent / "teacher"}"')
  return [
    sys.executable,
    '-m',
    'opd_jax.cli',
    'train',
    *(flag for file in files for flag in ('--gin_file', str(file))),
    *(flag for binding in bindings for flag in ('--gin_bindings', binding)),
    '--workdir',
    str(workdir),
    '--skip_preflight',
  ]


def ending(workdir: Path) -> Ending:
  from opd_jax.sharding import mesh_layout
  from opd_jax.storage import orbax_folder
  from opd_jax.storage.fingerprint import fingerprint

  plain = [re.sub(r', "time/[\w/]+": [^,}]+', '', row) for row in _rows(workdir)]
  student = fingerprint(orbax_folder.load(workdir / 'student', mesh_layout())[1])
  records = sorted((workdir / 'checkpoints').glob('step_*/run/metadata'))
  return Ending(plain, student, [json.loads(file.read_text())['position'] for file in records])


def _rows(workdir: Path) -> list[str]:
  file = workdir / 'metrics.jsonl'
  return file.read_text().splitlines() if file.is_file() else []


def kill_test(
  kills: int, folder: Path, *, files: Sequence[Path] = FROZEN, steps: int = 30
) -> tuple[int, int, Ending]:
  """Raises where the endings differ.

  Returns:
    Kills that hit a running process, those of them inside a checkpoint's writing, and the ending.
  """
  environment = {
    **os.environ, 'JAX_PLATFORMS': 'cpu', 'JAX_COMPILATION_CACHE_DIR': str(folder / 'cache'),
    'JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS': '0', 'PYTHONPATH': str(ROOT),
  }  # fmt: skip
  run = lambda workdir: subprocess.Popen(
    command(workdir, files, steps), env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    text=True,
  )  # fmt: skip
  if files == FROZEN:
    _teacher(folder / 'teacher')
  _finished(run(folder / 'whole'))
  rng, hit, writing, want = random.Random(SEED), 0, 0, ending(folder / 'whole')
  for number in range(3 * kills):  # a run may be done before it is killed
    workdir = folder / f'killed{number}'
    while hit < kills:
      process = run(workdir)
      starts = hit % 4 == 3  # every fourth kill falls into the start
      rows = 0 if starts else rng.randint(1, steps // 2)
      if not _killed(process, workdir, rows, rng.uniform(0, START if starts else STEP)):
        break
      hit += 1
      writing += any('tmp' in path.name for path in (workdir / 'checkpoints').glob('*'))
    _finished(run(workdir))  # towards the end every run is let through
    _same(want, ending(workdir))
    if hit >= kills:
      return hit, writing, want
  raise SystemExit(f'only {hit} of {kills} kills hit a running process')


def _killed(process: subprocess.Popen, workdir: Path, rows: int, later: float) -> bool:
  """Kills a process so much later than its metrics have so many more rows; False where it was done before."""
  rows += len(_rows(workdir)) if rows else 0
  while len(_rows(workdir)) < rows and process.poll() is None:
    time.sleep(0.05)
  time.sleep(later)
  was_running = process.poll() is None
  process.kill()
  output, _ = process.communicate()
  if not was_running and process.returncode:
    raise SystemExit(output)
  return was_running


def _finished(process: subprocess.Popen) -> None:
  output, _ = process.communicate()
  if process.returncode:
    raise SystemExit(output)


def _same(want: Ending, got: Ending) -> None:
  if want.metrics != got.metrics:
    unlike = [f'{a}\n{b}' for a, b in zip(want.metrics, got.metrics, strict=False) if a != b]
    raise SystemExit(
      f'metrics differ, {len(want.metrics)} and {len(got.metrics)} rows: {unlike[:1]}'
    )
  if want.student != got.student:
    raise SystemExit('parameters differ')
  if want.positions != got.positions:
    raise SystemExit(f'checkpoints remember something else: {want.positions}, {got.positions}')


def _teacher(folder: Path) -> None:
  import jax

  from opd_jax.models import presets, transformer
  from opd_jax.sharding import mesh_layout
  from opd_jax.storage import orbax_folder

  if not folder.exists():
    config = presets.tiny(width=64, num_layers=2, mlp_width=256, vocab_size=64)
    orbax_folder.save(folder, config, transformer.init(config, mesh_layout(), jax.random.key(1)))


if __name__ == '__main__':
  os.environ['JAX_PLATFORMS'] = 'cpu'
  wanted = int(sys.argv[1]) if len(sys.argv) > 1 else 20
  for killed, what in (
    (FROZEN, 'a frozen teacher'),
    (MOVING, 'everything that moves'),
    (STALE, 'batches on their way'),
  ):
    with tempfile.TemporaryDirectory() as name:
      count, inside, _ = kill_test(wanted, Path(name), files=killed)
    print(
      f'{what}: {count} kills, {inside} of them while a checkpoint was being written: metrics, parameters and what '
      'checkpoints remember are identical'
    )
