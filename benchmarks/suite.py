"""What the test suite costs with a number of methods: the first eight (the library's oldest), or more.

    python benchmarks/suite.py 8 16 54

Each number is a copy of this checkout in which the other methods, their gin files and their tests are deleted. Tests
that name a deleted method fail there and are counted; their time is part of what is measured. Prints wall and processor
seconds, and what a further method adds.
"""

import os
import re
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).parent.parent
OLDEST = 'opd', 'aopd', 'gkd', 'seqkd', 'sft', 'iw_opd', 'exopd', 'opd_plus'


def kept(count: int) -> list[str]:
  names = sorted(p.stem for p in (ROOT / 'opd_jax/methods').glob('[a-z]*.py'))
  return [*OLDEST, *(name for name in names if name not in OLDEST)][:count]


def copy_with(names: list[str], folder: Path) -> Path:
  files = subprocess.run(['git', 'ls-files'], cwd=ROOT, capture_output=True, text=True, check=True)
  homes = 'opd_jax/methods/', 'experiments/methods/', 'tests/methods/'
  for name in files.stdout.split():
    stem = Path(name).stem.removesuffix('_test')
    is_of_a_method = name.startswith(homes) and stem not in ('__init__', 'conftest')
    if not is_of_a_method or stem in names:
      (folder / name).parent.mkdir(parents=True, exist_ok=True)
      shutil.copy2(ROOT / name, folder / name)
  return folder


def measured(names: list[str]) -> tuple[float, float, str]:
  """Wall seconds, processor seconds and the last line of the suite with these methods."""
  with tempfile.TemporaryDirectory() as folder:
    root = copy_with(names, Path(folder))
    command = [sys.executable, '-m', 'pytest', '--numprocesses', '2', '--dist', 'loadfile']
    before, begin = resource.getrusage(resource.RUSAGE_CHILDREN), time.monotonic()
    done = subprocess.run(
      [*command, '--no-loadscope-reorder'],
      cwd=root,
      env={**os.environ, 'PYTHONPATH': str(root)},
      capture_output=True,
      text=True,
    )
    wall, after = time.monotonic() - begin, resource.getrusage(resource.RUSAGE_CHILDREN)
  cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
  summary = re.findall(r'^.*(?:passed|failed|error).* in .*$', done.stdout, re.MULTILINE)
  return wall, cpu, summary[-1].strip('= ') if summary else done.stdout[-300:]


def main() -> None:
  previous = None
  for count in map(int, sys.argv[1:]):
    wall, cpu, summary = measured(kept(count))
    line = f'{count:3d} methods: {wall:6.0f} s wall, {cpu:6.0f} processor s · {summary}'
    if previous:
      more = count - previous[0]
      line += f' · a further method: {(wall - previous[1]) / more:.1f} s, {(cpu - previous[2]) / more:.1f} processor s'
    previous = count, wall, cpu
    print(line, flush=True)


if __name__ == '__main__':
  main()
