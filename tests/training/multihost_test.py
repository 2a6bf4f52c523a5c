"""Two real processes over gloo make one run: the same numbers as one process with as many devices, and it resumes."""

import json
import os
import re
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import tiny_runs as runs

from opd_jax import cli
from opd_jax.sharding import mesh_layout
from opd_jax.training import recorder
from opd_jax.training.workdir import locked

TOGETHER = """
import sys
import jax

number, port, folder = int(sys.argv[1]), sys.argv[2], sys.argv[3]
jax.config.update('jax_platforms', 'cpu')
jax.config.update('jax_num_cpu_devices', 2)
jax.config.update('jax_cpu_collectives_implementation', 'gloo')
jax.distributed.initialize(f'localhost:{port}', num_processes=2, process_id=number)
"""
RUN = """
import signal
from pathlib import Path
import tiny_runs as runs
from opd_jax import cli
from opd_jax.sharding import mesh_layout
from opd_jax.training import loop

stop = int(sys.argv[4])
def look(done, total, text):
  if done == stop and number == 1:  # one process only: the other must agree to stop
    signal.raise_signal(signal.SIGTERM)

folder = Path(folder)
experiment = runs.experiment(folder, prompts=8, layout=mesh_layout(fsdp=2, tensor=2))
listener = loop.Listener(say=lambda text: None, progress=look)
outcome = runs.run(experiment, folder / 'two', listener=listener, skip_preflight=False)
assert outcome.finished == (stop < 0), outcome.position
"""

REFUSED = """
from pathlib import Path
from opd_jax.training import workdir

try:
  workdir.prepare(Path(folder))
  with workdir.locked(Path(folder)):
    raise SystemExit('nobody refused')
except ValueError as error:
  print(f'process {number}: {error}')
"""


EVALUATED = """
import json
from opd_jax import cli, responses
from opd_jax.data.problems import Problem, Task
from opd_jax.data.sources import Source

task = Task(name='t', source=Source(), read=lambda row: None, verify=lambda problem, text: number - 0.0)
assert [verdict.outcome for verdict in responses.verdicts_of(task, 2 * [Problem(())], ['', ''])] == ['wrong', 'wrong']
assert cli.main(['evaluate', *json.loads(sys.argv[4])]) == 0
"""


def free_port() -> int:
  with socket.socket() as probe:
    probe.bind(('localhost', 0))
    return probe.getsockname()[1]


def two(program: str, folder: Path, *more: str, seconds: int) -> list[str]:
  """What two processes say that run a program together."""
  arguments = str(free_port()), str(folder), *more
  command = [sys.executable, '-c', TOGETHER + program]
  path = {'PYTHONPATH': f'{Path(__file__).parent.parent}:{Path(__file__).parent.parent.parent}'}
  workers = [
    subprocess.Popen(
      [*command, str(number), *arguments], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
      env={**os.environ, **path},
    )
    for number in range(2)
  ]  # fmt: skip
  try:
    outputs = [worker.communicate(timeout=seconds)[0] for worker in workers]
  finally:
    for worker in workers:
      worker.kill()
      worker.communicate()
  assert [worker.returncode for worker in workers] == [0, 0], '\n'.join(outputs)[-6000:]
  return outputs


@pytest.mark.parametrize('why', ['another run is at work in', 'cannot be written'])
def test_two_processes_are_refused_with_the_same_words(tmp_path, why):
  """The first process holds the lock and touches the folder; the other must not wait for it at a collective."""
  if why == 'cannot be written':
    (tmp_path / 'file').write_text('')
    outputs = two(REFUSED, tmp_path / 'file' / 'run', seconds=60)
  else:
    with locked(tmp_path):
      outputs = two(REFUSED, tmp_path, seconds=60)
  said = [re.search(r'process (\d): (train: .*)', output) for output in outputs]
  assert all(said) and [each[1] for each in said if each] == ['0', '1'], outputs
  assert said[0] and said[1] and said[0][2] == said[1][2] and why in said[0][2]


def test_two_processes_run_as_one_does_and_stop_together(tmp_path):
  runs.teacher_folder(tmp_path)
  two(RUN, tmp_path, '4', seconds=240)
  assert [row['step'] for row in runs.metrics_of(tmp_path / 'two') if 'loss' in row] == [1, 2, 3, 4]
  two(RUN, tmp_path, '-1', seconds=240)
  runs.run(
    runs.experiment(tmp_path, prompts=8, layout=mesh_layout(fsdp=2, tensor=2)), tmp_path / 'one'
  )
  rows = [
    [row for row in runs.metrics_of(tmp_path / name) if 'loss' in row] for name in ('two', 'one')
  ]
  assert len(rows[0]) == len(rows[1]) == 6
  for what in ('loss', 'grad_norm', 'entropy', 'length', 'tokens'):
    np.testing.assert_allclose(
      *([row[what] for row in part] for part in rows), rtol=1e-4, err_msg=what
    )
  kept = [
    [(row['step'], row['row']) for row in recorder.read_lines(tmp_path / name / recorder.ROLLOUTS)]
    for name in ('two', 'one')
  ]
  assert kept[0] == kept[1] == [(1, row) for row in range(8)]


def test_two_processes_evaluate_as_one_does(tmp_path):
  """The same outcomes, also after a cut; where the two judge differently, the first one's verdict holds."""
  rows = [{'problem': f'What is {n} + 1?', 'answer': str(n + 1)} for n in range(3)]
  (tmp_path / 'sums.jsonl').write_text(''.join(json.dumps(row) + '\n' for row in rows))
  bindings = {'samples': 2, 'budget': 4, 'slots': 1, 'problems': 3}
  bound = [f'evaluator.Evaluation.{name} = {value}' for name, value in bindings.items()]
  bound.append(f"PROBLEMS = '{tmp_path}/sums.jsonl'")
  file = Path(__file__).parents[2] / 'experiments/evaluations/aime24.gin'
  words = ['tiny', '--gin_file', str(file), *(word for each in bound for word in ('--gin_bindings', each))]  # fmt: skip
  to = lambda name: [*words, '--workdir', str(tmp_path / name)]
  assert cli.main(['evaluate', *to('one')]) == 0
  outcomes = [tmp_path / name / 'outcomes.jsonl' for name in ('one', 'two')]
  for _ in range(2):
    said = two(EVALUATED, tmp_path, json.dumps(to('two')), seconds=120)
    assert ['aime24' in each for each in said] == [True, False]
    one, other = (each.read_text() for each in outcomes)
    assert one == other and len(one.splitlines()) == 6
    outcomes[1].write_text(other[: len(other) - 20])
