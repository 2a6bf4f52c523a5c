"""Kills a run with `kill -9` at random moments, resumes it until it is done, and compares with an undisturbed one.

    python benchmarks/kill.py [KILLS]        20 by default; exit status 1 where metrics or parameters differ

The moments fall anywhere: while it starts, in a step, inside the writing of a checkpoint (there is one every step).
"""

import os
import random
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).parent.parent
FILES = ('models/small.gin', 'data/sums.gin', 'methods/aopd.gin', 'judges/teacher.gin')
SEED = 7


def command(workdir: Path, teacher: Path, steps: int) -> list[str]:
  files = [flag for file in FILES for flag in ('--gin_file', str(ROOT / 'experiments' / file))]
  bindings = (
    f'TEACHER = "{teacher}"', f'STEPS = {steps}', 'PROMPTS = 8', 'presets.tiny.width = 64',
    'experiment.Experiment.checkpoint_every = 1', 'evaluator.Evaluation.every = 5',
    'evaluator.Evaluation.problems = 8',
  )  # fmt: skip
  flags = [flag for binding in bindings for flag in ('--gin_bindings', binding)]
  return [
    sys.executable,
    '-m',
    'opd_jax.cli',
    'train',
    *files,
    *flags,
    '--workdir',
    str(workdir),
    '--skip_preflight',
  ]


def ending(workdir: Path) -> tuple[list[str], dict[str, int]]:
  """Metrics without what belongs to the machine, and the fingerprint of the student."""
  from opd_jax.sharding import mesh_layout
  from opd_jax.storage import orbax_folder
  from opd_jax.storage.fingerprint import fingerprint

  rows = (workdir / 'metrics.jsonl').read_text().splitlines()
  plain = [re.sub(r', "time/\w+": [^,}]+', '', row) for row in rows]
  return plain, fingerprint(orbax_folder.load(workdir / 'student', mesh_layout())[1])


def kill_test(kills: int, folder: Path, *, steps: int = 30) -> tuple[int, int]:
  """(kills that hit a running process, of them inside a checkpoint write); raises where the endings differ."""
  environment = {
    **os.environ, 'JAX_PLATFORMS': 'cpu', 'JAX_COMPILATION_CACHE_DIR': str(folder / 'cache'),
    'JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS': '0', 'PYTHONPATH': str(ROOT),
  }  # fmt: skip
  run = lambda workdir: subprocess.Popen(
    command(workdir, folder / 'teacher', steps), env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    text=True,
  )  # fmt: skip
  _teacher(folder / 'teacher')
  seconds = 0.0
  for name in ('first', 'whole'):  # the second finds its programs compiled, as the killed ones do
    began = time.monotonic()
    whole = run(folder / name)
    output, _ = whole.communicate()
    if whole.returncode:
      raise SystemExit(output)
    seconds = time.monotonic() - began
  rng, hit, writing, want = random.Random(SEED), 0, 0, ending(folder / 'whole')
  for number in range(3 * kills):  # a run may be done before it is killed
    workdir = folder / f'killed{number}'
    while True:
      process = run(workdir)
      try:  # towards the end every run is let through
        output, _ = process.communicate(
          timeout=None if hit >= kills else rng.uniform(0.3, 0.9) * seconds
        )
      except subprocess.TimeoutExpired:
        process.kill()
        process.communicate()
        hit += 1
        writing += any('tmp' in path.name for path in (workdir / 'checkpoints').glob('*'))
        continue
      if process.returncode:
        raise SystemExit(output)
      break
    _same(want, ending(workdir))
    if hit >= kills:
      return hit, writing
  raise SystemExit(f'only {hit} of {kills} kills hit a running process')


def _same(want, got) -> None:
  if want[0] != got[0]:
    unlike = [f'{a}\n{b}' for a, b in zip(want[0], got[0], strict=False) if a != b]
    raise SystemExit(f'metrics differ, {len(want[0])} and {len(got[0])} rows: {unlike[:1]}')
  if want[1] != got[1]:
    raise SystemExit('parameters differ')


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
  with tempfile.TemporaryDirectory() as name:
    count, inside = kill_test(int(sys.argv[1]) if len(sys.argv) > 1 else 20, Path(name))
    print(
      f'{count} kills, {inside} of them while a checkpoint was being written: metrics and parameters are identical'
    )
