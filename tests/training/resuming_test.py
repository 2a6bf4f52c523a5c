"""What may change between the calls of a run: how it is observed, and how long its last stage is."""

from pathlib import Path

import pytest
import tiny_runs as runs

from opd_jax.training import resuming
from opd_jax.training.resuming import Plan

SAVED = """\
from opd_jax.training import experiment
BUDGET = 40
STEPS = 10
TASK = @sums.sums()
TEACHER = '/teacher'
# Parameters for evaluator.Evaluation:
evaluator.Evaluation.budget = %BUDGET
evaluator.Evaluation.every = 50
evaluator.Evaluation.task = @heldout/sums.sums()
experiment.Experiment.checkpoint_every = 50
experiment.Experiment.evaluations = [@evaluator.Evaluation()]
experiment.Experiment.seed = 0
experiment.Experiment.stages = [@warm/experiment.Stage(), @experiment.Stage()]
experiment.Stage.judges = \\
    {'teacher': @judges.frozen()}
experiment.Stage.optimiser = @optimisers.adamw()
experiment.Stage.steps = %STEPS
experiment.Stage.task = %TASK
heldout/sums.sums.split = 'heldout'
heldout/sums.sums.largest = 9
judges.frozen.weights = %TEACHER
optimisers.adamw.rate = 0.001
optimisers.adamw.steps = None
TASK/sums.sums.largest = 9
warm/experiment.Stage.steps = 5
warm/experiment.Stage.task = %TASK
"""
STEPS = [5, 10]


def ask(*changes, steps=STEPS, extend=False, saved=SAVED, more=''):
  """What is said where a run goes on with a changed configuration."""
  config, said = saved + more, []
  for old, new in changes:
    assert old in config
    config = config.replace(old, new)
  plans = Plan(saved, STEPS), Plan(config, steps)
  resuming.check(*plans, folder=Path('run'), extend=extend, say=said.append)
  return said


@pytest.mark.parametrize(
  'old, new, name',
  [
    ('checkpoint_every = 50', 'checkpoint_every = 7', 'checkpoint_every'),
    ('[@evaluator.Evaluation()]', '()', 'evaluations'),
    ('Evaluation.every = 50', 'Evaluation.every = 2', 'evaluator.Evaluation.every'),
    ('heldout/sums.sums.largest = 9', 'heldout/sums.sums.largest = 8', 'heldout/sums.sums.largest'),
  ],
)
def test_how_a_run_is_observed_may_change_and_is_said(old, new, name):
  assert ask((old, new)) == [f'observed in another way than before: {name}']


def test_new_ways_of_observing_may_come():
  more = "experiment.Experiment.wandb = 'mine'\nexperiment.Experiment.samples_every = 3\n"
  assert ask(more=more) == ['observed in another way than before: wandb, samples_every']


@pytest.mark.parametrize(
  'old, new',
  [
    ('rate = 0.001', 'rate = 0.002'),
    ("'/teacher'", "'/other'"),
    ('seed = 0', 'seed = 1'),
    (
      'BUDGET = 40',
      'BUDGET = 41',
    ),  # a macro that no stage reads would be free; here the stage does
    ('TASK/sums.sums.largest = 9', 'TASK/sums.sums.largest = 8'),
    ("{'teacher': @judges.frozen()}", '{}'),
  ],
)
def test_whatever_numbers_depend_on_is_refused_with_the_difference(old, new):
  saved = (
    SAVED + 'experiment.Stage.sampling = @sampler.Sampling()\nsampler.Sampling.budget = %BUDGET\n'
  )
  with pytest.raises(ValueError, match='belongs to another configuration') as refusal:
    ask((old, new), ('checkpoint_every = 50', 'checkpoint_every = 7'), saved=saved)
  assert '\n-' in str(refusal.value) and 'checkpoint_every' not in str(refusal.value)
  assert '--extend' not in str(refusal.value)


def test_evaluations_that_a_judge_follows_are_no_observation():
  saved = SAVED + "judges.frozen.gate = @gates.better()\ngates.better.metric = 'eval/sums/avg@1'\n"
  with pytest.raises(ValueError, match=r'Evaluation\.every'):
    ask(('Evaluation.every = 50', 'Evaluation.every = 2'), saved=saved)


def test_more_steps_need_to_be_asked_for_and_only_the_last_stage_has_them():
  longer = ('STEPS = 10', 'STEPS = 20')
  with pytest.raises(ValueError, match=r'(?s)-STEPS = 10.*\+STEPS = 20.*add --extend'):
    ask(longer, steps=[5, 20])
  assert ask(longer, steps=[5, 20], extend=True) == [
    'extended: the last stage has 20 steps instead of 10; its optimiser goes on'
  ]
  with pytest.raises(ValueError, match=r'only the last stage.*\[5, 10\] steps, and \[6, 20\]'):
    ask(longer, steps=[6, 20], extend=True)
  with pytest.raises(ValueError, match='has 10 steps, 9 are asked for'):
    ask(('STEPS = 10', 'STEPS = 9'), steps=[5, 9], extend=True)
  with pytest.raises(ValueError, match=r'rate = 0\.002'):
    ask(longer, ('rate = 0.001', 'rate = 0.002'), steps=[5, 20], extend=True)


def test_a_schedule_that_follows_the_steps_is_named():
  saved = SAVED.replace('adamw.steps = None', 'adamw.steps = %STEPS')
  _, warning = ask(('STEPS = 10', 'STEPS = 20'), steps=[5, 20], extend=True, saved=saved)
  assert warning.startswith('warning: optimisers.adamw.steps depend on STEPS')


def test_a_run_that_is_extended_ends_like_one_that_was_as_long_from_the_beginning(tmp_path):
  config = lambda steps: f'experiment.Stage.steps = {steps}\n'

  def experiment(steps):
    known = runs.experiment(tmp_path, evaluations=(), checkpoint_every=2)
    return runs.dataclasses.replace(
      known, stages=(runs.dataclasses.replace(known.stages[1], steps=steps),)
    )

  whole = runs.run(experiment(5), tmp_path / 'whole', config=config(5))
  runs.run(experiment(3), tmp_path / 'run', config=config(3))
  longer = runs.run(experiment(5), tmp_path / 'run', config=config(5), extend=True)
  assert longer.position == whole.position and longer.position.step == 5
  assert runs.digest_of(longer) == runs.digest_of(whole)
  assert runs.metrics_of(tmp_path / 'run') == runs.metrics_of(tmp_path / 'whole')
  again = runs.run(experiment(5), tmp_path / 'run', config=config(5))
  assert again.finished and runs.digest_of(again) == runs.digest_of(whole)
