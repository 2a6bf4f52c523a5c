"""What each method adds to the suite: seconds of its formula, of the laws and of its certificates; lines of its file.

    python benchmarks/method_seconds.py

One run of pytest in one process, in which programs are compiled once: what several methods share is paid by the first.
"""

import os
import re
import statistics
import subprocess
import sys
from collections import Counter
from pathlib import Path

from opd_jax.methods import discover

ROOT = Path(__file__).parent.parent
PARTS = {
  'formula': re.compile(r'tests/methods/(\w+)_test\.py::'),
  'laws': re.compile(r'tests/contract_test\.py::\w+\[(\w+)'),
  'certificate': re.compile(r'tests/certify_test\.py::test_every_method_holds\[(\w+)'),
}
TESTS = 'tests/methods', 'tests/contract_test.py', 'tests/certify_test.py'
DURATION = re.compile(r'^([\d.]+)s (?:call|setup|teardown) +(\S.*)$', re.MULTILINE)


def measured() -> str:
  """What pytest prints."""
  run = subprocess.run(
    [sys.executable, '-m', 'pytest', '-p', 'no:xdist', '-vvv', '--durations=0', *TESTS],
    cwd=ROOT,
    env={**os.environ, 'PYTHONPATH': str(ROOT)},
    capture_output=True,
    text=True,
  )
  if run.returncode:
    raise SystemExit(run.stdout[-4000:] + run.stderr[-2000:])
  return run.stdout


def seconds_of(printed: str) -> Counter[tuple[str, str]]:
  """Seconds by method and part."""
  spent: Counter[tuple[str, str]] = Counter()
  for seconds, test in DURATION.findall(printed):
    for part, pattern in PARTS.items():
      if found := pattern.match(test):
        spent[found[1], part] += float(seconds)
  return spent


def main() -> None:
  spent = seconds_of(measured())
  methods = [entry.name for entry in discover()]
  lines = {
    name: len((ROOT / 'opd_jax' / 'methods' / f'{name}.py').read_text().splitlines())
    for name in methods
  }
  total = {name: sum(spent[name, part] for part in PARTS) for name in methods}
  print('| method | formula, s | laws, s | certificate, s | together, s | lines |')
  print('|---|---|---|---|---|---|')
  for name in sorted(methods, key=lambda name: -total[name]):
    parts = ' | '.join(f'{spent[name, part]:.2f}' for part in PARTS)
    print(f'| {name} | {parts} | {total[name]:.2f} | {lines[name]} |')
  over = sum(each > 3 for each in total.values())
  print(
    f'\n{len(methods)} methods, {sum(total.values()):.0f} s. Medians: {statistics.median(total.values()):.2f} s, '
    f'{statistics.median(lines.values()):.0f} lines. Over 3 s: {over}.'
  )


if __name__ == '__main__':
  main()
