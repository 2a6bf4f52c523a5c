"""`opd evaluate`, as a user would call it."""

import json
import re
from pathlib import Path

import pytest

from opd_jax import cli
from opd_jax.commands import evaluate
from opd_jax.evaluation.evaluator import Evaluator
from opd_jax.training.workdir import locked
from opd_jax.trust import Trust

AIME = Path(__file__).parent.parent / 'experiments/evaluations/aime24.gin'
TWO = AIME.with_name('aime24_two_graders.gin')
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
  names = [(f'problems.jsonl, line {1 + n // 3}', n % 3) for n in range(15)]
  assert [(row['problem'], row['sample']) for row in whole] == names  # nothing of this machine
  assert len(whole) == 15 and {row['outcome'] for row in whole} <= {'correct', 'wrong', 'unparsed'}
  right = sum(row['outcome'] == 'correct' for row in whole) / 15
  assert re.search(rf'aime24 +5 +avg@3 +{right:.1%} +\S+% to \S+% +\d+ +\S+%', table), table
  assert re.search(r'\n +pass@3 +\S+% +\S+% to \S+%', table), table
  results = json.loads((tmp_path / 'out/results.json').read_text())['aime24']
  assert (results['problems'], results['samples']) == (5, 3)
  assert results['measures']['avg@3']['mean'] == pytest.approx(right)
  assert [*results['measures']] == ['avg@3', 'pass@3'] and 'disagreed' not in results

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
  other = (
    '--gin_bindings',
    'evaluator.Evaluation.ks = (1, 2)',
  )  # another table of the same responses
  assert cli.main(words(tmp_path, *other)) == 0 and asked[3:] == []
  assert 'pass@2' in capsys.readouterr().out
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
    built = evaluate._evaluations([str(AIME)], words(tmp_path)[5:-2:2], Trust())
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


def test_a_folder_where_somebody_evaluates_is_refused_in_this_commands_name(tmp_path, capsys):
  (tmp_path / 'out').mkdir()
  with locked(tmp_path / 'out'):
    assert cli.main(words(tmp_path)) == 2
  said = capsys.readouterr().err
  assert 'evaluate: another run is at work in' in said and 'train' not in said


def test_two_graders_are_counted_in_the_table_and_in_every_outcome(tmp_path, capsys):
  pytest.importorskip('math_verify')
  asked = [str(TWO) if word == str(AIME) else word for word in words(tmp_path)]
  assert cli.main(asked) == 0
  table, rows = capsys.readouterr().out, outcomes(tmp_path)
  assert 'aime24_two_graders' in table and 'disagreed' in table
  assert all(row['second'] in ('correct', 'wrong', 'unparsed') for row in rows) and len(rows) == 15
  share = sum((row['outcome'] == 'correct') != (row['second'] == 'correct') for row in rows) / 15
  assert json.loads((tmp_path / 'out/results.json').read_text())['aime24_two_graders'][
    'disagreed'
  ] == pytest.approx(share)


def test_a_prompt_without_room_is_named_before_anything_is_asked(tmp_path, capsys, monkeypatch):
  monkeypatch.setattr(Evaluator, 'sample', lambda self, model, begin, end: pytest.fail('asked'))
  asked = words(tmp_path)
  with open(tmp_path / 'problems.jsonl', 'a') as stream:
    stream.write(json.dumps({'problem': 3000 * 'x', 'answer': '1'}) + '\n')
  asked[asked.index('evaluator.Evaluation.problems = 5')] = 'evaluator.Evaluation.problems = 6'
  assert cli.main(asked) == 2
  said = capsys.readouterr().err
  assert re.search(r'problems.jsonl, line 6 has 30\d\d tokens, the model has 2048 positions', said)


def test_data_that_cannot_be_read_are_refused_before_a_model_is_loaded(tmp_path, capsys):
  asked = words(tmp_path)
  (tmp_path / 'problems.jsonl').write_text('{"problem": "a"}\n')
  asked[1] = 'no/such-model'
  assert cli.main(asked) == 2 and "it has no 'answer'" in capsys.readouterr().err
