"""Probes: the cosine is that of two gradients, and the number that follows it shortens the next responses."""

import dataclasses

import jax
import numpy as np
import pytest
import tiny_runs as runs

from opd_jax import judges
from opd_jax.methods.adwin import adwin
from opd_jax.probes import Probe
from opd_jax.training import probing, verbs
from opd_jax.training.state import RunPosition


def test_the_cosine_is_that_of_the_first_tokens_with_all(tmp_path):
  teacher = {'teacher': judges.frozen(runs.teacher_folder(tmp_path))}
  method = adwin(windows=(1, 4, 99), agreement=0.6, every=2)
  runtime, state = runs.at_work(tmp_path, teacher, method=method)
  position = RunPosition()
  responses = verbs.sample(runtime, state.weights, runtime.stream().take(4), position)
  evidence = verbs.score(runtime, state.weights, responses, position)
  batch, _ = verbs.weigh(runtime, state.weights, evidence)
  row = probing.probed(runtime, state, batch, position)
  assert abs(row['probe/cosine_99'] - 1) < 1e-5
  flat = lambda part: np.concatenate(
    [np.ravel(leaf) for leaf in jax.tree.leaves(probing._gradient(runtime, state, part))]
  ).astype(np.float64)
  one, whole = flat(probing.first_tokens(batch, 4)), flat(batch)
  want = one @ whole / np.linalg.norm(one) / np.linalg.norm(whole)
  assert abs(row['probe/cosine_4'] - want) < 1e-5 and row['probe/cosine_1'] < row['probe/cosine_99']
  agreed = [window for window in (1, 4, 99) if row[f'probe/cosine_{window}'] >= 0.6]
  assert row['probe/window'] == agreed[0]
  assert probing.probed(runtime, state, batch, RunPosition(stage_step=1)) == {}


def test_responses_are_as_long_as_the_last_probe_says(tmp_path):
  method = adwin(windows=(2, 3, 5), agreement=-1.0, every=2)  # the smallest always agrees
  experiment = runs.experiment(tmp_path, distil={'method': method})
  experiment = dataclasses.replace(experiment, stages=experiment.stages[1:], evaluations=())
  runs.run(experiment, tmp_path / 'run')
  first, second, third = runs.metrics_of(tmp_path / 'run')
  assert first['probe/window'] == 2.0 and 'probe/window' not in second
  assert second['length_max'] <= 2 < min(first['length_max'], third['length_max'])
  assert second['moving/window'] == 2.0


def test_refusals():
  with pytest.raises(ValueError, match='windows must rise'):
    Probe(windows=(4, 2), agreement=0.5, every=1)
