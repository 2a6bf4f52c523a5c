"""An evaluation takes a model and needs no stage: its numbers depend on nothing that a stage says."""

import dataclasses
import itertools

import jax
import numpy as np
import pytest
import tiny_runs as runs

from opd_jax import judges
from opd_jax.data.problems import Verdict
from opd_jax.data.templates import Template
from opd_jax.data.tiny_worlds import sums
from opd_jax.evaluation.evaluator import Evaluation, Evaluator
from opd_jax.inference.decoding import Decoding, Greedy
from opd_jax.inference.sampler import Model, Sampling
from opd_jax.models import transformer
from opd_jax.sharding import mesh_layout
from opd_jax.training.evaluations import Evaluations
from opd_jax.training.runtime import build_runtime

HELDOUT = Evaluation(
  task=sums.sums(split='heldout'), problems=4, samples=2, every=2, budget=12, slots=4
)


def model(layout=None):
  layout = layout or mesh_layout()
  return Model(runs.CONFIG, layout, transformer.init(runs.CONFIG, layout, jax.random.key(0)))


def test_an_evaluation_needs_no_stage_and_its_key_is_the_experiments():
  outcomes = [
    Evaluator(HELDOUT, sums.tokenizer(), jax.random.key(seed)).run(model()) for seed in (0, 0, 1)
  ]
  assert outcomes[0].metrics == outcomes[1].metrics
  assert outcomes[0].responses.texts == outcomes[1].responses.texts != outcomes[2].responses.texts
  names = {name.removeprefix('eval/sums/') for name in outcomes[0].metrics}
  assert names == {
    'avg@2', 'pass@2', 'reward', 'length', 'truncated', 'unparsed', 'timed_out', 'entropy'
  }  # fmt: skip


def test_a_stage_does_not_change_what_is_measured(tmp_path):
  """Budget, template and key are the evaluation's own: the first row is the same whatever stage begins."""
  rows = []
  for number, changes in enumerate(({}, {'sampling': Sampling(budget=3, slots=2)}, {'samples': 2})):
    known = runs.experiment(tmp_path, evaluations=(HELDOUT,))
    stage = dataclasses.replace(known.stages[1], steps=1, **changes)
    runs.run(dataclasses.replace(known, stages=(stage,)), tmp_path / str(number))
    row = runs.metrics_of(tmp_path / str(number))[0]
    rows.append({name: value for name, value in row.items() if name.startswith('eval/')})
  assert rows[0] == rows[1] == rows[2] and 'eval/sums/reverse_kl' in rows[0]
  known = runs.experiment(tmp_path, evaluations=(HELDOUT,))
  recorder = runs.recorder.Recorder(tmp_path, begin=-1, is_writer=False)
  first, second = (
    Evaluations(known, build_runtime(known, number), recorder, None).evaluators[0]
    for number in (0, 1)
  )
  assert first.key == second.key


def test_several_evaluations_share_a_row_and_record_every_outcome(tmp_path):
  greedy = dataclasses.replace(
    HELDOUT, name='greedy', samples=1, every=0, decoding=Decoding(rules=(Greedy(),))
  )
  known = runs.experiment(tmp_path, evaluations=(HELDOUT, greedy))
  runs.run(known, tmp_path / 'run')
  rows = runs.metrics_of(tmp_path / 'run')
  at = lambda name: [row['step'] for row in rows if name in row]
  assert at('eval/sums/avg@2') == [0, 2, 3, 4, 6]
  assert at('eval/greedy/avg@1') == [
    0,
    3,
    6,
  ]  # every = 0: before the first step, and after each stage
  assert 'eval/greedy/entropy' not in rows[0]
  outcomes = runs.recorder.read_lines(tmp_path / 'run' / 'outcomes.jsonl')
  assert len(outcomes) == 5 * 8 + 3 * 4
  assert outcomes[1].keys() == {
    'step', 'evaluation', 'problem', 'sample', 'outcome', 'reward', 'length', 'ended_by', 'seed'
  }  # fmt: skip
  assert [row['sample'] for row in outcomes[:4]] == [0, 1, 0, 1]
  mean = np.mean([row['outcome'] == 'correct' for row in outcomes[:8]])
  assert rows[0]['eval/sums/avg@2'] == pytest.approx(mean)


def test_where_nobody_judged_there_is_no_reverse_kl(tmp_path):
  nobody = judges.itself(context=lambda scene: None)
  known = runs.experiment(
    tmp_path, distil={'judges': {'teacher': nobody}, 'steps': 1}, evaluations=(HELDOUT,)
  )
  runs.run(dataclasses.replace(known, stages=known.stages[1:]), tmp_path / 'run')
  assert not any('eval/sums/reverse_kl' in row for row in runs.metrics_of(tmp_path / 'run'))


def test_an_evaluation_may_be_judged_elsewhere_and_needs_no_routes(tmp_path):
  weights, many = runs.teacher_folder(tmp_path), mesh_layout(fsdp=4)
  alone = judges.frozen(weights, layout=mesh_layout())
  six = dataclasses.replace(HELDOUT, problems=3)
  for name, judge in (('elsewhere', alone), ('by route', judges.routed(a=alone, b=alone))):
    runtime, state = runs.at_work(tmp_path, {'teacher': judge}, layout=many)
    evaluator = Evaluator(six, runtime.tokenizer, jax.random.key(0))
    outcome = evaluator.run(model(many))
    row = evaluator.reverse_kl(runtime.judges['teacher'], state.weights, outcome, step=0, seed=0)
    assert (row.get('eval/sums/reverse_kl', 0) > 0) == (name == 'elsewhere')


def measured(tmp_path, judge, evaluation):
  """What a judge of a stage says of an evaluation, and the responses."""
  runtime, state = runs.at_work(tmp_path, {'teacher': judge})
  evaluator = Evaluator(evaluation, runtime.tokenizer, jax.random.key(0))
  outcome = evaluator.run(model())
  teacher = runtime.judges['teacher']
  row = evaluator.reverse_kl(teacher, state.weights, outcome, step=0, seed=0)
  return {name.removeprefix('eval/sums/'): value for name, value in row.items()}, outcome.responses


def test_a_row_that_the_judge_has_no_room_for_is_unknown_and_counted(tmp_path):
  """The student's table and the budget of an evaluation may be longer than a teacher's table: that stops no run."""
  weights = runs.teacher_folder(tmp_path, max_positions=32)
  long = dataclasses.replace(HELDOUT, problems=8, budget=40)
  row, responses = measured(tmp_path, judges.frozen(weights), long)
  rollout = responses.rollout
  whole = rollout.lengths + rollout.prompt.length
  assert 0 < (whole > 32).sum() < len(whole)
  assert row['unknown'] == pytest.approx((whole > 32).mean()) and np.isfinite(row['reverse_kl'])
  none = dataclasses.replace(long, template=Template(chat=False, suffix=20 * '1'))
  assert measured(tmp_path, judges.frozen(weights), none)[0] == {'unknown': 1.0}


def test_a_judge_reads_the_template_of_the_evaluation_unless_it_names_its_own(tmp_path):
  weights, asked = runs.teacher_folder(tmp_path), Template(chat=False, suffix='1+1=')
  suffixed = dataclasses.replace(HELDOUT, template=asked)
  same, other = (
    measured(tmp_path, judges.frozen(weights, template=template), suffixed)[0]
    for template in (asked, Template(chat=False))
  )
  assert abs(same['reverse_kl'] - other['reverse_kl']) > 1e-3 and same['unknown'] == 0
  silent = judges.frozen(weights)
  for judge in (
    silent,
    judges.frozen(weights, cache=str(tmp_path / 'cache')),
    judges.routed({'': silent}),
    judges.combined(parts=((1.0, silent),)),
  ):
    assert measured(tmp_path, judge, suffixed)[0] == pytest.approx(same, rel=1e-5)


def test_partial_credit_is_a_reward_and_an_outcome_counts():
  """avg@k is what `opd evaluate` counts; with rewards of 0 and 1 both are the same."""
  verdicts = itertools.cycle([Verdict(0.25), Verdict(0.5, outcome='wrong'), Verdict(0.0), 1.0])
  partial = dataclasses.replace(HELDOUT.task, verify=lambda problem, text: next(verdicts))
  evaluator = Evaluator(
    dataclasses.replace(HELDOUT, task=partial, ks=(1, 2)), sums.tokenizer(), jax.random.key(0)
  )
  metrics = evaluator.run(model()).metrics
  told = [metrics[f'eval/sums/{name}'] for name in ('avg@2', 'pass@1', 'pass@2', 'reward')]
  assert told == [0.5, 0.5, 1.0, 0.4375]


def test_a_second_verifier_is_in_metrics_and_outcomes():
  verdicts = itertools.cycle([Verdict(1.0, second='wrong'), Verdict(0.0, second='unparsed')])
  twice = dataclasses.replace(HELDOUT.task, verify=lambda problem, text: next(verdicts))
  evaluator = Evaluator(
    dataclasses.replace(HELDOUT, task=twice), sums.tokenizer(), jax.random.key(0)
  )
  found = evaluator.run(model())
  assert found.metrics['eval/sums/disagreed'] == 0.5
  rows = evaluator.outcomes(found.responses, step=0, seed=0)
  assert [row['second'] for row in rows[:2]] == ['wrong', 'unparsed']


def test_refusals():
  for ks in ((3,), (0,)):
    with pytest.raises(ValueError, match='ks are whole numbers from 1 to its 2 samples, got'):
      dataclasses.replace(HELDOUT, ks=ks)
  with pytest.raises(ValueError, match='every must be a whole number of at least 0, got -1'):
    dataclasses.replace(HELDOUT, every=-1)
  with pytest.raises(ValueError, match='the task has 5'):
    few = dataclasses.replace(HELDOUT, task=sums.sums(size=5), problems=6)
    Evaluator(few, sums.tokenizer(), jax.random.key(0))
