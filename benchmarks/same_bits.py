"""Whether two checkouts train to the same bits: SFT, AOPD and GKD on one device and on eight simulated ones.

    python benchmarks/same_bits.py FOLDER ROOT [OTHER_ROOT]

Each ROOT is a checkout. Its runs land in FOLDER/<name of ROOT> and are not repeated when they are there. With two
checkouts, every metric that both report and every parameter must be equal; metrics that only one reports are listed.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np

DEVICES = 1, 8
STEPS = {'sft': 40, 'aopd': 10, 'gkd': 10}
COMMON = 'models/small.gin', 'data/sums.gin'
READ = """
import sys
import jax, numpy as np
jax.config.update('jax_platforms', 'cpu')
from pathlib import Path
from opd_jax.sharding import mesh_layout
try:
  from opd_jax.storage import orbax_folder
except ImportError:
  from opd_jax.storage import orbax_folder
_, params = orbax_folder.load(Path(sys.argv[1]), mesh_layout())
leaves = jax.tree_util.tree_leaves_with_path(params)
np.savez(sys.argv[2], **{jax.tree_util.keystr(path): leaf for path, leaf in leaves})
"""


def call(root: Path, arguments: list[str], devices: int = 1) -> None:
  environment = {
    **os.environ,
    'JAX_PLATFORMS': 'cpu',
    'JAX_NUM_CPU_DEVICES': str(devices),
    'PYTHONPATH': str(root),
  }
  done = subprocess.run(
    [sys.executable, *arguments], cwd=root, env=environment, capture_output=True, text=True
  )
  if done.returncode:
    raise SystemExit(
      f'{root}: {" ".join(arguments)[:300]}\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}'
    )


def trained(root: Path, folder: Path) -> None:
  for devices in DEVICES:
    for method, steps in STEPS.items():
      workdir = folder / f'{method}-{devices}'
      if (workdir / 'params.npz').exists():
        continue
      files = [*COMMON, f'methods/{method}.gin'] + (['layouts/fsdp.gin'] if devices > 1 else [])
      bindings = [f'STEPS = {steps}']
      if method != 'sft':
        files.append('judges/teacher.gin')
        bindings += [f'TEACHER = "{folder}/sft-{devices}/student"', 'RATE = 3e-4', 'PROMPTS = 32']
      flags = [flag for file in files for flag in ('--gin_file', f'experiments/{file}')]
      flags += [flag for binding in bindings for flag in ('--gin_bindings', binding)]
      call(root, ['-m', 'opd_jax.cli', 'train', *flags, '--workdir', str(workdir)], devices)
      call(root, ['-c', READ, str(workdir / 'student'), str(workdir / 'params.npz')])
      print(f'ran {workdir}', flush=True)


def compared(one: Path, other: Path) -> bool:
  alike = True
  for devices in DEVICES:
    for method in STEPS:
      name = f'{method}-{devices}'
      rows = [
        [json.loads(line) for line in (folder / name / 'metrics.jsonl').read_text().splitlines()]
        for folder in (one, other)
      ]
      params = [dict(np.load(folder / name / 'params.npz')) for folder in (one, other)]
      shared, lonely, unlike = 0, set(), set()
      for first, second in zip(*rows, strict=True):
        for key in {key for key in first.keys() | second.keys() if not key.startswith('time/')}:
          if (key in first) != (key in second):
            lonely.add(key)
          elif first[key] != second[key]:
            unlike.add(key)
          else:
            shared += 1
      same = params[0].keys() == params[1].keys() and all(
        np.array_equal(params[0][key], params[1][key]) for key in params[0]
      )
      print(f'{name}: parameters {"equal" if same else "DIFFER"}; {shared} numbers equal, differing {sorted(unlike)}, '
            f'only on one side {sorted(lonely)}')  # fmt: skip
      alike &= same and not unlike
  return alike


if __name__ == '__main__':
  place, *roots = (Path(argument).resolve() for argument in sys.argv[1:])
  for root in roots:
    trained(root, place / root.name)
  if len(roots) == 2 and not compared(*(place / root.name for root in roots)):
    raise SystemExit(1)
