"""Stands in for a worker in tests of the runner: it writes a line a step and a student, and resumes.

The words of a task are train FOLDER VALUE STEPS SECONDS. A VALUE below zero fails at the end, one above 100
kills the worker.
"""

import json
import os
import signal
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
    raise ValueError('opd train: the loss is not finite\n  in: line 3')
  if value > 100:
    os.kill(os.getpid(), signal.SIGKILL)
  (folder / 'student').mkdir(exist_ok=True)


if __name__ == '__main__':
  for line in sys.stdin:
    task, status = json.loads(line), 0
    _, folder, value, steps, seconds = task['words']
    try:
      work(Path(folder), float(value), int(steps), float(seconds))
    except ValueError as error:
      status = 1
      with open(task['log'], 'a') as log:
        log.write(f'{error}\n')
    print(status, flush=True)
