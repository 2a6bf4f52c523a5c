"""Stands in for the training command in tests of the runner: it writes a line a step and a student, and resumes.

python stub_worker.py FOLDER VALUE STEPS SECONDS; a VALUE below zero fails at the end.
"""

import json
import sys
import time
from pathlib import Path


def work(folder: Path, value: float, steps: int, seconds: float) -> None:
  metrics = folder / 'metrics.jsonl'
  done = metrics.read_text().splitlines() if metrics.exists() else []
  with open(metrics, 'a') as stream:
    for step in range(len(done), steps):
      row = {'step': step, 'tokens': 10, 'eval/sums/avg@1': value, 'eval/sums/length': value}
      stream.write(json.dumps(row) + '\n')
      stream.flush()
      time.sleep(seconds)
  if value < 0:
    raise SystemExit('opd train: the loss is not finite\n  in: line 3')
  (folder / 'student').mkdir(exist_ok=True)


if __name__ == '__main__':
  work(Path(sys.argv[1]), float(sys.argv[2]), int(sys.argv[3]), float(sys.argv[4]))
