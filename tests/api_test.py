"""A loop of one's own: the same numbers as `opd train`, and a student that is saved and evaluated."""

import dataclasses

import tiny_runs

from opd_jax import api, judges
from opd_jax.storage import load
from opd_jax.training import recorder


def one_stage(folder, **changes):
  """Two steps of AOPD with a teacher that is an average of the student, beside one that is frozen."""
  teacher = judges.itself(refresh=judges.ema(rate=0.5))
  known = tiny_runs.experiment(folder, distil={'steps': 2, 'judges': {'teacher': teacher}})
  return dataclasses.replace(known, stages=known.stages[1:], **changes)


def test_a_loop_of_ones_own_has_the_numbers_of_a_run(tmp_path):
  """And it begins where one says, asks what one says, and evaluates and saves what it ends with."""
  experiment = one_stage(tmp_path)
  tiny_runs.run(experiment, tmp_path / 'run')
  rows = [row for row in recorder.read(tmp_path / 'run') if 'loss' in row]
  training = api.begin(experiment)
  for row in rows:
    responses = api.sample(training)
    evidence = api.score(training, responses)
    batch = api.weigh(training, evidence)
    training, metrics = api.update(training, responses, evidence, batch)
    for name in ('loss', 'grad_norm', 'param_norm', 'tokens'):
      assert metrics[name] == row[name], name
  assert training.position.step == len(rows) == 2
  problem = training.stream.take(1)[0]
  responses = api.sample(training, [problem] * 2)
  assert [each.name for each in responses.problems] == [problem.name] * len(responses.texts)
  assert 0 <= api.evaluate(training)['eval/sums/avg@1'] <= 1
  api.save(training, tmp_path / 'saved')
  saved = load.model(str(tmp_path / 'saved'), experiment.layout)
  assert tiny_runs.closeness(saved.params, training.state.params) == 0
  again = api.begin(experiment, params=training.state.params)
  assert tiny_runs.closeness(saved.params, again.state.params) == 0 == again.position.step
