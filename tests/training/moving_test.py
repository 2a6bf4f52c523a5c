"""Numbers that look at metrics: when they move, what a checkpoint keeps of them, and what is refused."""

import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest
import tiny_runs as runs

from opd_jax import judges, ramps, rollouts
from opd_jax.data import mixture
from opd_jax.data.tiny_worlds import sums
from opd_jax.evaluation.evaluator import Evaluation
from opd_jax.judges import contexts, refresh
from opd_jax.ramps import Piecewise, Ramp, Stepped
from opd_jax.training import loop, moving, recorder

LONGER = Stepped(name='length', begin=8, end=20, by=8, metric='truncated', above=0.5)


def values(number: Stepped, readings: list[float]) -> list[float]:
  memory, seen = {}, []
  for reading in readings:
    memory = number.after(memory, reading)
    seen.append(memory['value'])
  return seen


def test_it_goes_towards_its_end_and_stays():
  assert values(LONGER, [0.6, 0.4, 0.9, 0.9]) == [16, 16, 20, 20]
  down = dataclasses.replace(LONGER, begin=1.0, end=0.25, by=0.5, above=None, below=0.5)
  assert values(down, [0.4, 0.6, 0.4, 0.0]) == [0.5, 0.5, 0.25, 0.25]


def test_it_rises_with_a_metric_that_rises():
  rising = dataclasses.replace(LONGER, begin=0, end=9, by=1, above=None, rises=True)
  assert values(rising, [3.0, 3.0, 3.1, 2.0, 2.5, 2.6]) == [0, 0, 1, 1, 2, 3]


def test_it_smooths_and_waits():
  smooth = dataclasses.replace(LONGER, smooth=0.25)
  assert values(smooth, [0.0, 1.0, 1.0, 1.0, 1.0]) == [8, 8, 8, 16, 20]  # 0.25, 0.44, 0.58
  waiting = dataclasses.replace(LONGER, end=100, wait=2)
  assert values(waiting, [1.0] * 5) == [16, 16, 16, 24, 24]


def test_a_record_is_settled_at_a_step():
  mix = rollouts.RolloutMix(
    teacher=Piecewise(points=((0, 0.5), (2, 0.0))), stop_after=LONGER, prefix=3
  )
  got = ramps.settled(mix, 1, {'length': 16.0})
  assert got == rollouts.RolloutMix(teacher=0.25, stop_after=16, prefix=3)
  assert ramps.settled(mix, 5).stop_after == 8 and mix.needs_teacher and mix.needs_student
  assert ramps.extremes(Ramp(begin=3, end=-1, steps=2)) == (-1, 3)


def test_rows_that_say_nothing_move_nothing():
  heldout = dataclasses.replace(LONGER, metric='eval/sums/avg@1', name='heldout')
  memory = moving.after((LONGER, heldout), None, {'loss': 1.0, 'truncated': 0.9})
  assert moving.decisions(memory) == {'length': 16}
  memory = moving.after((LONGER, heldout), memory, {'eval/sums/avg@1': 0.7})
  assert moving.decisions(memory) == {'length': 16, 'heldout': 16}
  assert moving.after((LONGER,), memory, {'loss': 1.0, 'truncated': np.nan}) == memory
  with pytest.raises(
    ValueError, match=r"length looks at truncated, and this step reports \['loss'\]"
  ):
    moving.after((LONGER,), None, {'loss': 1.0})


def test_refusals(tmp_path):
  with pytest.raises(ValueError, match='exactly one of above, below and rises'):
    dataclasses.replace(LONGER, below=0.1)
  with pytest.raises(ValueError, match='differs from machine to machine'):
    dataclasses.replace(LONGER, metric='time/sample')
  with pytest.raises(ValueError, match='rate must lie in'):
    refresh.Refresh(rate=LONGER)
  stage = runs.experiment(tmp_path).stages[1]
  twice = rollouts.RolloutMix(stop_after=LONGER, prefix=dataclasses.replace(LONGER, by=1))
  with pytest.raises(ValueError, match='numbers of one name must be equal'):
    moving.numbers_of(dataclasses.replace(stage, rollout=twice), ())
  away = rollouts.RolloutMix(stop_after=dataclasses.replace(LONGER, metric='eval/maths/avg@1'))
  evaluation = runs.experiment(tmp_path).evaluations[0]
  assert isinstance(evaluation, Evaluation)
  with pytest.raises(ValueError, match=r"looks at eval/maths/avg@1.*report \['eval/sums/'\]"):
    moving.numbers_of(dataclasses.replace(stage, rollout=away), (evaluation,))


def test_a_run_that_was_cut_off_finds_its_numbers_again(tmp_path):
  """Who writes, how long, which task is asked and what the judge is shown all move, and two of them by metrics."""
  more = Stepped(name='data', begin=1.0, end=0.0, by=0.25, metric='eval/sums/length', above=0.0)
  length = dataclasses.replace(LONGER, metric='length', above=0.0)
  mix = rollouts.RolloutMix(stop_after=length, data=more)
  tasks = {'short': sums.sums(**runs.WORLD), 'other': sums.sums(seed=1, **runs.WORLD)}
  other = dataclasses.replace(more, name='other', begin=0.5, end=1.0)
  weights = {'short': Ramp(begin=1, end=0, steps=2), 'other': other}
  fading = contexts.solution(introduction=':', part=dataclasses.replace(more, name='shown'))
  teacher = judges.frozen(runs.teacher_folder(tmp_path), context=fading)
  changes = {'task': mixture.mixture(tasks, weights=weights), 'judges': {'teacher': teacher}}
  experiment = runs.experiment(tmp_path, distil={'rollout': mix, **changes})
  experiment = dataclasses.replace(experiment, stages=experiment.stages[1:])
  whole = runs.run(experiment, tmp_path / 'whole')
  rows = runs.metrics_of(tmp_path / 'whole')
  stood = [(row['moving/data'], row['moving/length']) for row in rows if 'loss' in row]
  assert (
    stood[0][0] == 0.75 and stood[-1][0] < 0.75 and stood[-1][1] > 8
  )  # evaluated at step 0, too
  asked = [row.get('asked/short', 0) for row in rows if 'loss' in row]
  assert asked[0] > 0 and asked[-1] == 0
  assert rows[-2]['moving/shown'] < 1 and rows[-2]['moving/other'] == 1

  def pull(done, total, text):
    if done == 2:
      raise KeyboardInterrupt

  with pytest.raises(KeyboardInterrupt):
    runs.run(
      experiment, tmp_path / 'cut', listener=loop.Listener(say=lambda text: None, progress=pull)
    )
  resumed = runs.run(experiment, tmp_path / 'cut')
  assert runs.metrics_of(tmp_path / 'cut') == rows
  assert runs.digest_of(resumed) == runs.digest_of(whole)
  recorded, again = (
    recorder.read_lines(tmp_path / name / recorder.ROLLOUTS) for name in ('whole', 'cut')
  )
  assert recorded == again and all(
    row['prompt'] + ':' in row['shown']['teacher'] for row in recorded
  )


def test_a_weight_inside_a_method_cannot_look_at_metrics():
  with pytest.raises(ValueError, match='length: a weight inside a method follows the step only'):
    ramps.at(LONGER, jnp.int32(3))


def test_a_probe_that_nobody_makes_is_refused(tmp_path):
  stage = runs.experiment(tmp_path).stages[1]
  window = ramps.Latest(name='w', metric='probe/windo', full=9, least=1, every=5)
  mix = rollouts.RolloutMix(stop_after=window)
  with pytest.raises(ValueError, match='w looks at probe/windo, and the method measures'):
    moving.numbers_of(dataclasses.replace(stage, rollout=mix), ())
  assert window.after({}, 99.0) == {'value': 9.0} and ramps.extremes(window) == (1.0, 9.0)
  with pytest.raises(ValueError, match='every must be at least 1'):
    dataclasses.replace(window, every=0)


def test_a_metric_that_was_there_before_may_be_missing_for_a_step():
  memory = moving.after((LONGER,), None, {'loss': 1.0, 'truncated': 0.9})
  assert moving.after((LONGER,), memory, {'loss': 1.0}) == memory
