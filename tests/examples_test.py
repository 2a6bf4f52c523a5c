"""The examples run; a few steps are enough to see that."""

import importlib.util
from pathlib import Path

EXAMPLES = Path(__file__).parent.parent / 'examples'


def example(name: str):
  spec = importlib.util.spec_from_file_location(name, EXAMPLES / f'{name}.py')
  assert spec is not None and spec.loader is not None
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  return module


def test_one_page_runs_and_tells_of_every_part(capsys):
  before, after = example('one_page').main(teacher_steps=2, student_steps=1, steps=2)
  assert 0 <= before <= 1 and 0 <= after <= 1
  lines = capsys.readouterr().out.splitlines()
  assert [line.split(':')[0] for line in lines] == [
    'teacher, SFT    2',
    'student, SFT    1',
    'student, GKD    2',
    'the student',
  ]
  assert 'reverse KL nan' in lines[0]  # SFT asks no judge
  assert 'reverse KL nan' not in lines[2] and 'loss nan' not in ''.join(lines)


def test_one_page_is_one_page():
  assert len((EXAMPLES / 'one_page.py').read_text().splitlines()) <= 80
