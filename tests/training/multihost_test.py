"""Two real processes over gloo make one run: the same numbers as one process with as many devices, and it resumes."""

import json
import os
import re
import socket
import subprocess
import sys
from pathlib import Path

import jax
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
jax.config.update('jax_cpu_enable_async_dispatch', False)
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

APART = """
import signal
import jax
from pathlib import Path
import tiny_runs as runs
from opd_jax.training import loop

stop, way = int(sys.argv[4]), sys.argv[5]
def look(done, total, text):
  if done == stop and number == 1:
    signal.raise_signal(signal.SIGTERM)

folder = Path(folder)
experiment = runs.with_teacher_apart(folder, way, jax.devices())
listener = loop.Listener(say=lambda text: None, progress=look)
outcome = runs.run(experiment, folder / way, listener=listener, skip_preflight=False)
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
assert [verdict.outcome for verdict in responses.verdicts_of(task, 2 * [Problem(())], ['', ''])] == ['wrong', 'correct']
assert cli.main(['evaluate', *json.loads(sys.argv[4])]) == 0
"""


def free_port() -> int:
  with socket.socket() as probe:
    probe.bind(('localhost', 0))
    return probe.getsockname()[1]


def two(program: str, folder: Path, *more: str, seconds: int, joined: bool = True) -> list[str]:
  """What two processes say that run a program together; `joined` says whether they are told of each other."""
  return together(TOGETHER + program if joined else program, folder, *more, seconds=seconds)


def together(program: str, folder: Path, *more: str, seconds: int, count: int = 2) -> list[str]:
  """What processes say that run a program at the same time, each with its number, a port and the folder."""
  arguments = str(free_port()), str(folder), *more
  command = [sys.executable, '-c', program]
  path = {'PYTHONPATH': f'{Path(__file__).parent.parent}:{Path(__file__).parent.parent.parent}'}
  workers = [
    subprocess.Popen(
      [*command, str(number), *arguments], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
      env={**os.environ, **path},
    )
    for number in range(count)
  ]  # fmt: skip
  try:
    outputs = [worker.communicate(timeout=seconds)[0] for worker in workers]
  finally:
    for worker in workers:
      worker.kill()
      worker.communicate()
  assert [worker.returncode for worker in workers] == [0] * count, '\n'.join(outputs)[-6000:]
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


@pytest.mark.parametrize('way', ['disjoint', 'halves'])
def test_a_teacher_on_devices_of_another_process_trains_as_one_process_does(tmp_path, way):
  """`disjoint`: the second process has the teacher and nothing of the student; `halves`: each has half of both."""
  runs.teacher_folder(tmp_path)
  two(APART, tmp_path, '5', way, seconds=400)
  two(APART, tmp_path, '-1', way, seconds=400)
  alone = runs.with_teacher_apart(tmp_path, way, jax.devices())
  runs.run(alone, tmp_path / 'one', skip_preflight=False)
  rows = [runs.metrics_of(tmp_path / name) for name in (way, 'one')]
  assert [row['step'] for row in rows[0]] == [row['step'] for row in rows[1]]
  assert [row['staleness'] for row in rows[0] if 'loss' in row] == [0, 0, 0, 0, 1, 1]
  for what in ('loss', 'grad_norm', 'entropy', 'length', 'log_ratio', 'eval/sums/reverse_kl'):
    one, other = ([row[what] for row in part if what in row] for part in rows)
    assert one and len(one) == len(other)
    np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-6, err_msg=what)


def evaluation(folder: Path, **bindings: int) -> list[str]:
  """The words of `opd evaluate` that ask a tiny model some sums."""
  rows = [{'problem': f'What is {n} + 1?', 'answer': str(n + 1)} for n in range(3)]
  (folder / 'sums.jsonl').write_text(''.join(json.dumps(row) + '\n' for row in rows))
  bound = [f'evaluator.Evaluation.{name} = {value}' for name, value in bindings.items()]
  bound.append(f"PROBLEMS = '{folder}/sums.jsonl'")
  file = Path(__file__).parents[2] / 'experiments/evaluations/aime24.gin'
  flags = [word for each in bound for word in ('--gin_bindings', each)]
  return ['tiny', '--gin_file', str(file), *flags]


def test_two_processes_evaluate_as_one_does(tmp_path):
  """The same outcomes, also after a cut; where the two would judge differently, each row has one judge."""
  words = evaluation(tmp_path, samples=2, budget=4, slots=1, problems=3)
  to = lambda name: [*words, '--workdir', str(tmp_path / name)]
  assert cli.main(['evaluate', *to('one')]) == 0
  outcomes = [tmp_path / name / 'outcomes.jsonl' for name in ('one', 'two')]
  for _ in range(2):
    said = two(EVALUATED, tmp_path, json.dumps(to('two')), seconds=120)
    assert ['aime24' in each for each in said] == [True, False]
    one, other = (each.read_text() for each in outcomes)
    assert one == other and len(one.splitlines()) == 6
    outcomes[1].write_text(other[: len(other) - 20])


SLURM = """
import os, sys
number, port, folder = sys.argv[1:4]
step = {'JOB_ID': '7', 'STEP_NODELIST': 'localhost', 'NTASKS': '2', 'PROCID': number, 'LOCALID': number}
os.environ |= {f'SLURM_{name}': value for name, value in step.items()} | {'JAX_COORDINATOR_PORT': port}
import jax
jax.config.update('jax_cpu_collectives_implementation', 'gloo')
jax.config.update('jax_num_cpu_devices', 1)
import json
from opd_jax import cli
assert cli.main(['evaluate', *json.loads(sys.argv[4]), '--distributed']) == 0
assert (jax.process_count(), jax.process_index()) == (2, int(number))
"""


def test_processes_of_a_slurm_job_find_each_other(tmp_path):
  """What `srun` sets is enough: no flag names a process."""
  words = evaluation(tmp_path, samples=2, budget=4, problems=1)
  words = json.dumps([*words, '--workdir', str(tmp_path / 'out')])
  said = two(SLURM, tmp_path, words, seconds=180, joined=False)
  assert ['aime24' in each for each in said] == [True, False]
  assert len((tmp_path / 'out' / 'outcomes.jsonl').read_text().splitlines()) == 2


ANYWHERE = """
import signal, sys
from pathlib import Path
import jax

number, port, folder = int(sys.argv[1]), sys.argv[2], Path(sys.argv[3])
count, devices, stop = map(int, sys.argv[4:])
jax.config.update('jax_platforms', 'cpu')
jax.config.update('jax_num_cpu_devices', devices)
jax.config.update('jax_cpu_collectives_implementation', 'gloo')
if count > 1:
  jax.distributed.initialize(f'localhost:{port}', num_processes=count, process_id=number)
import tiny_runs as runs
from opd_jax.sharding import mesh_layout
from opd_jax.training import loop

def look(done, total, text):
  if done == stop and number == count - 1:  # the last process only: nobody else is told
    signal.raise_signal(signal.SIGTERM)

assert jax.device_count() == count * devices
experiment = runs.experiment(folder, prompts=8, layout=mesh_layout(fsdp=-1))
listener = loop.Listener(say=print, progress=look)
outcome = runs.run(experiment, folder / 'moved', listener=listener)
assert (outcome.signal, outcome.position.step) == ((signal.SIGTERM, stop) if stop else (0, 6))
"""


def test_a_run_goes_on_with_another_number_of_processes_and_devices(tmp_path):
  """Two hosts, then one, then four, preempted in both stages: the numbers are those of a run that nobody disturbed."""
  runs.teacher_folder(tmp_path)
  for count, devices, stop in ((2, 1, 1), (1, 1, 4), (4, 1, 0)):
    words = [str(each) for each in (count, devices, stop)]
    said = together(ANYWHERE, tmp_path, *words, seconds=900, count=count)
    assert not [each for each in said if stop and 'interrupted and saved' not in each]
  runs.run(runs.experiment(tmp_path, prompts=8), tmp_path / 'still')
  moved, still = (runs.metrics_of(tmp_path / name) for name in ('moved', 'still'))
  assert [row['step'] for row in moved] == [row['step'] for row in still]
  worst = {}
  for one, other in zip(moved, still, strict=True):
    assert one.keys() == other.keys()
    for name in one:
      if isinstance(one[name], float) and isinstance(other[name], float):
        gap = abs(one[name] - other[name]) / max(1.0, abs(other[name]))
        worst[name] = max(worst.get(name, 0.0), gap)
      else:
        assert np.shape(one[name]) == np.shape(other[name]), name
  assert max(worst.values()) <= 1e-5, sorted(worst.items(), key=lambda each: -each[1])[:5]


DEALT = """
from opd_jax.processes import agreed, dealt

mine = []
def work(rows):
  mine.extend(rows)
  return [{'row': row, 'by': number, 'text': 'é' * row} for row in rows]

whole = dealt(work, 5)
assert mine == [*range(number, 5, 2)], mine
assert [each['row'] for each in whole] == [0, 1, 2, 3, 4]
assert [each['by'] for each in whole] == [0, 1, 0, 1, 0]
assert [len(each['text']) for each in whole] == [0, 1, 2, 3, 4]
assert dealt(work, 0) == [] and dealt(work, 1)[0]['by'] == 0
assert agreed({'by': number}) == {'by': 0}
def refuse(rows):
  if number == 1:
    raise ValueError('row 1 cannot be judged')
  return [*rows]
try:
  dealt(refuse, 4)
except ValueError as error:
  print(f'process {number}: {error}')
"""


def test_rows_are_dealt_to_processes_and_a_refusal_of_one_stops_all(tmp_path):
  said = two(DEALT, tmp_path, seconds=60)
  for number, output in enumerate(said):
    assert f'process {number}: row 1 cannot be judged' in output
