"""`kill -9`, in its short form; `benchmarks/kill.py` does it twenty times."""

import importlib.util
import json
from pathlib import Path

from opd_jax.judges.gates import Improved

SCRIPT = Path(__file__).parent.parent.parent / 'benchmarks' / 'kill.py'


def script():
  spec = importlib.util.spec_from_file_location('kill', SCRIPT)
  assert spec and spec.loader
  kill = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(kill)
  return kill


def test_a_killed_run_ends_like_an_undisturbed_one(tmp_path):
  script().kill_test(2, tmp_path, steps=10)


def test_a_killed_run_finds_the_batches_that_were_on_their_way(tmp_path):
  kill = script()
  *_, (metrics, _, _) = kill.kill_test(1, tmp_path, files=kill.STALE, steps=6)
  ages = [row['staleness'] for row in map(json.loads, metrics) if 'loss' in row]
  assert ages == [0, 1, 2, 2, 2, 2]


def test_a_killed_run_finds_its_gate_and_its_numbers_again(tmp_path):
  """The teacher is renewed when the evaluation improves, and writes a prefix that looks at another metric of it."""
  kill, gate, memory = script(), Improved(metric='eval/sums/entropy'), {}
  *_, (metrics, _, positions) = kill.kill_test(1, tmp_path, files=kill.MOVING, steps=6)
  rows, remembered = [json.loads(row) for row in metrics], {}
  for row in rows:
    memory, opens = gate.after(memory, row)
    assert ('refresh/teacher' in row) == opens
    remembered[row['step']] = memory
  assert [row['moving/prefix'] for row in rows if 'loss' in row] == [3, 3, 2, 2, 1, 1]
  assert [each['gates'] for each in positions] == [{'teacher': remembered[at]} for at in (5, 6)]
