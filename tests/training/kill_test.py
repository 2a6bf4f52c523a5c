"""`kill -9`, in its short form; `benchmarks/kill.py` does it twenty times."""

import importlib.util
from pathlib import Path

SCRIPT = Path(__file__).parent.parent.parent / 'benchmarks' / 'kill.py'


def test_a_killed_run_ends_like_an_undisturbed_one(tmp_path):
  spec = importlib.util.spec_from_file_location('kill', SCRIPT)
  assert spec and spec.loader
  kill = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(kill)
  kill.kill_test(2, tmp_path, steps=10)
