"""`opd evaluate`, as a user would call it."""

import json
from pathlib import Path

import pytest

from opd_jax import cli
from opd_jax.commands import evaluate
from opd_jax.evaluation.evaluator import Evaluator

AIME = Path(__file__).parent.parent / 'experiments/evaluations/aime24.gin'
SMALL = [
  'evaluator.Evaluation.samples = 3',
  'evaluator.Evaluation.budget = 8',
  'evaluator.Evaluation.slots = 3',
]


def words(tmp_path, *more: str, problems: int = 5, out: str = 'out') -> list[str]:
  file = tmp_path / 'problems.jsonl'
  rows = [{'problem': f'What is {n} + 1?', 'answer': str(n + 1)} for n in range(5)]
  file.write_text(''.join(json.dumps(row) + '\n' for row in rows))
  bindings = [*SMALL, f'PROBLEMS = {str(file)!r}', f'evaluator.Evaluation.problems = {problems}']
  flags = [word for binding in bindings for word in ('--gin_bindings', binding)]
  return ['evaluate', 'tiny', '--gin_file', str(AIME), *flags, '--workdir', str(tmp_path / out), *more]  # fmt: skip


def outcomes(tmp_path, out: str = 'out') -> list[dict]:
  return [json.loads(line) for line in (tmp_path / out / 'outcomes.jsonl').read_text().splitlines()]


def test_a_cut_evaluation_goes_on_with_the_same_responses(tmp_path, capsys, monkeypatch):
  assert cli.main(words(tmp_path)) == 0
  table = capsys.readouterr().out
  whole = outcomes(tmp_path)
  assert [(row['problem'][-6:], row['sample']) for row in whole[:4]] == [
    ('line 1', 0), ('line 1', 1), ('line 1', 2), ('line 2', 0),
  ]  # fmt: skip
  assert len(whole) == 15 and {row['outcome'] for row in whole} <= {'correct', 'wrong', 'unparsed'}
  right = sum(row['outcome'] == 'correct' for row in whole) / 15
  assert 'aime24' in table and f'@3 {right:.1%}' in table

  file = tmp_path / 'out/outcomes.jsonl'
  text = file.read_text()
  file.write_text(text[: len(text) * 2 // 3])  # within a line
  asked = []
  real = Evaluator.sample
  monkeypatch.setattr(
    Evaluator, 'sample', lambda self, model, b, e: asked.append((b, e)) or real(self, model, b, e)
  )
  assert cli.main(words(tmp_path)) == 0
  assert outcomes(tmp_path) == whole and capsys.readouterr().out == table
  assert asked == [(0, 4), (4, 5)]
  file.write_text(text[:-5])  # within the second part
  assert cli.main(words(tmp_path)) == 0 and asked[2:] == [(4, 5)]
  assert cli.main(words(tmp_path)) == 0 and asked[3:] == []
  assert outcomes(tmp_path) == whole


@pytest.mark.parametrize(
  'more, said',
  [
    (['--seed', '1'], 'holds outcomes of another seed'),
    (['--gin_bindings', 'decoding.TopP.p = 0.5'], 'holds outcomes of another config'),
  ],
)
def test_outcomes_of_something_else_are_refused(tmp_path, capsys, more, said):
  (tmp_path / 'out').mkdir()
  record = {'model': 'tiny', 'seed': 0, 'dtype': None, 'config': []}
  if 'seed' in said:
    built = evaluate._evaluations([str(AIME)], words(tmp_path)[5:-2:2])
    record['config'] = built[1]
  (tmp_path / 'out/evaluate.json').write_text(json.dumps(record))
  assert cli.main(words(tmp_path, *more)) == 2
  assert said in capsys.readouterr().err


@pytest.mark.parametrize(
  'change, said',
  [
    ({'problems': 6}, '6 problems are asked for, the task has 5'),
    ({'problems': 0}, 'problems must be a whole number of at least 1, got 0'),
  ],
)
def test_a_number_of_problems_that_cannot_be_is_refused(tmp_path, capsys, change, said):
  assert cli.main(words(tmp_path, **change)) == 2
  assert said in capsys.readouterr().err


def test_what_is_not_there_is_named(tmp_path, capsys):
  missing = words(tmp_path)
  missing[missing.index('--gin_file') + 1] = 'no.gin'
  assert cli.main(missing) == 2 and 'gin file not found: no.gin' in capsys.readouterr().err
  assert cli.main(['evaluate', 'tiny', '--workdir', str(tmp_path)]) == 2
  assert 'name at least one --gin_file' in capsys.readouterr().err
  twice = [*words(tmp_path), '--gin_file', str(AIME)]
  assert cli.main(twice) == 2 and 'two evaluations are called aime24' in capsys.readouterr().err
  (tmp_path / 'run').mkdir()
  (tmp_path / 'run/metrics.jsonl').write_text('')
  unfinished = words(tmp_path)
  unfinished[1] = str(tmp_path / 'run')
  assert cli.main(unfinished) == 2 and 'it has no student' in capsys.readouterr().err
