"""Verdicts of studies whose runs are written by hand."""

import json

import numpy as np
import pytest
import toy_study

from opd_jax.studies import measures, verdicts
from opd_jax.studies.ledger import DONE, Ledger
from opd_jax.studies.study import Cell, Contrast, Measure, Study

MEASURE = Measure(name='accuracy', key='eval/sums/avg@1', scale=100.0, smallest=3.0)
OUTCOME = {1.0: 'correct', 0.0: 'wrong'}
LOW, HIGH = [10.0, 20.0, 30.0, 40.0, 50.0], [30.0, 41.0, 49.0, 61.0, 70.0]


def folder_with(tmp_path, contrasts, outcomes=None, printed=(), **values):
  """A study with a run for each value; `outcomes` are problems of each run."""
  cells = tuple(Cell(name=name, files=('x.gin',)) for name in values)
  study = Study(
    paper='p',
    cells=cells,
    seeds=(1, 2, 3, 4, 5),
    measures=(MEASURE,),
    contrasts=contrasts,
    printed=printed,
  )
  ledger = Ledger(study, tmp_path)
  for cell in cells:
    for seed, value in zip(study.seeds, values[cell.name], strict=False):
      where = ledger.folder(ledger.run_of(cell, seed))
      where.mkdir(parents=True)
      rows = [{'step': 0, MEASURE.key: 0.5}, {'step': 9, MEASURE.key: value / 100}]
      (where / 'metrics.jsonl').write_text(''.join(json.dumps(row) + '\n' for row in rows))
      (where / DONE).write_text('{}')
      if outcomes is not None:
        write_outcomes(where, outcomes(cell.name, seed))
  return ledger


def write_outcomes(where, rewards):
  rows = [
    {'evaluation': name, 'step': step, 'problem': f'p{i}', 'sample': 0, 'outcome': OUTCOME[reward]}
    for name, step in (('sums', 0), ('sums', 9), ('other', 9))
    for i, reward in enumerate(rewards if (name, step) == ('sums', 9) else [0.0] * len(rewards))
  ]
  text = ''.join(json.dumps(row) + '\n' for row in rows)
  (where / 'outcomes.jsonl').write_text(text + '{"evaluation": "su')


@pytest.mark.parametrize(
  'order, within, verdict',
  [
    (('low', 'high'), None, 'agrees'),
    (('high', 'low'), None, 'contradicts'),
    (('low', 'alike'), None, 'cannot tell'),
    (('low', 'alike'), 3.0, 'agrees'),
    (('low', 'alike'), 0.1, 'cannot tell'),
    (('low', 'high'), 3.0, 'contradicts'),
    (('low', 'missing'), None, 'cannot tell'),
    (('low', 'alike', 'high'), None, 'cannot tell'),
    (('high', 'alike', 'low'), None, 'contradicts'),
    (('alike', 'high', 'higher'), None, 'agrees'),
  ],
)
def test_the_verdict_of_a_claim(tmp_path, order, within, verdict):
  contrast = Contrast(claim='c', order=order, within=within)
  alike = [10.5, 19.5, 30.2, 40.1, 49.8]
  higher = [50, 62, 69, 83, 90]
  ledger = folder_with(
    tmp_path, (contrast,), low=LOW, high=HIGH, alike=alike, missing=[], higher=higher
  )
  assert verdicts.verdict_of(verdicts.compared(ledger)) == verdict


def test_a_comparison_names_what_it_could_have_seen(tmp_path):
  printed = toy_study.printed(measure='accuracy', low=49.31, high=53.4)
  contrasts = (Contrast(claim='c', order=('low', 'high')),)
  ledger = folder_with(tmp_path, contrasts, printed=printed, low=LOW, high=HIGH)
  [pair] = verdicts.compared(ledger)
  assert pair.found is not None and pair.printed is not None
  assert (pair.found.n, pair.found.mean) == (5, pytest.approx(20.2))
  assert pair.found.sd == pytest.approx(np.std(np.subtract(HIGH, LOW), ddof=1))
  # 1.68 standard deviations at five pairs; at three it is 3.26 of them, 2.73.
  assert pair.detectable == pytest.approx(1.682 * pair.found.sd, rel=1e-3)
  assert pair.seeds_needed == 3
  assert pair.printed == pytest.approx((4.09, 1.861), abs=1e-3)


def test_what_has_not_run_counts_in_the_family(tmp_path):
  wanted = tuple(Contrast(claim=c, order=('low', c)) for c in ('high', 'one', 'two'))
  ledger = folder_with(tmp_path, wanted, low=LOW, high=HIGH, one=[], two=[])
  high, one, _ = verdicts.compared(ledger)
  assert high.found and high.holm == pytest.approx(3 * high.found.p)
  assert one.found is None and one.holm == 1 and one.detectable == np.inf


def test_only_seeds_that_both_have_are_paired(tmp_path):
  wanted = (Contrast(claim='c', order=('low', 'high')),)
  ledger = folder_with(tmp_path, wanted, low=LOW, high=HIGH[:3])
  [pair] = verdicts.compared(ledger)
  assert pair.found and pair.found.n == 3 and pair.found.mean == pytest.approx(20)


def test_outcomes_give_an_interval_over_problems_too(tmp_path):
  """Problems differ much in what a method gains on them: the interval over seeds alone does not see it."""
  rng = np.random.default_rng(0)

  def outcomes(cell, seed):
    return [float(cell == 'high' and i % 4 == 0) for i in range(20)]

  contrasts = (Contrast(claim='c', order=('low', 'high')),)
  low = [50 + rng.normal() for _ in range(5)]
  ledger = folder_with(tmp_path, contrasts, outcomes, low=low, high=[25 + x for x in low])
  [pair] = verdicts.compared(ledger)
  assert pair.over_problems is not None
  below, above = pair.over_problems
  assert below < 10 and above > 40 and below + above == pytest.approx(50, abs=12)


def test_problems_that_differ_between_runs_are_not_paired(tmp_path):
  def outcomes(cell, seed):
    return [0.0, 1.0] if cell == 'low' else [1.0, 0.0, 1.0]

  contrasts = (Contrast(claim='c', order=('low', 'high')),)
  ledger = folder_with(tmp_path, contrasts, outcomes, low=LOW, high=HIGH)
  assert verdicts.compared(ledger)[0].over_problems is None


def test_a_value_is_the_last_one_and_a_cut_line_is_ignored(tmp_path):
  lines = [{'step': i, 'entropy': e} for i, e in enumerate([9.0, 1.0, 2.0, None])]
  text = ''.join(json.dumps(line) + '\n' for line in lines)
  (tmp_path / 'metrics.jsonl').write_text(text + '{"entropy": 5.0')
  assert measures.value_of(tmp_path, Measure(name='e', key='entropy')) == 2
  assert measures.value_of(tmp_path, Measure(name='e', key='entropy', last=2, scale=10.0)) == 15
  with pytest.raises(
    ValueError, match=r'has no kl, which the measure k reads. It has entropy, step'
  ):
    measures.value_of(tmp_path, Measure(name='k', key='kl'))


def test_the_last_evaluation_of_its_own_name_is_read_problem_by_problem(tmp_path):
  write_outcomes(tmp_path, [1.0, 0.0])
  assert measures.by_problem(tmp_path, MEASURE) == {'p0': 100, 'p1': 0}
  assert measures.by_problem(tmp_path, Measure(name='l', key='eval/sums/length')) is None
  row = {'evaluation': 'sums', 'step': 9, 'problem': 'a', 'sample': 0}
  rows = [row | {'outcome': 'correct'}, row | {'outcome': 'unparsed'}]
  (tmp_path / 'outcomes.jsonl').write_text(''.join(json.dumps(each) + '\n' for each in rows))
  assert measures.by_problem(tmp_path, MEASURE) == {'a': 50}
  half = [{**each, 'reward': 0.5} for each in rows]  # partial credit is in `reward`, not in avg@k
  (tmp_path / 'outcomes.jsonl').write_text(''.join(json.dumps(each) + '\n' for each in half))
  assert measures.by_problem(tmp_path, MEASURE) == {'a': 50}
