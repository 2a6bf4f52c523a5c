"""Steered judges at work: one model for all that they read, coefficients of each row, and rows that nobody judges."""

import dataclasses

import jax
import numpy as np
import pytest
import tiny_runs as runs

from opd_jax import judges, ramps
from opd_jax.judges import steering
from opd_jax.methods import ogls
from opd_jax.ramps import Ramp, Stepped
from opd_jax.training import verbs
from opd_jax.training.state import RunPosition

SAMPLES = 3
REWARDS = np.array([1, 0, 0, 1, 1, 0, 0, 0, 0, 1, 1, 1], np.float32)  # four questions
AT = RunPosition(stage_step=2)


def at_work(folder, judge):
  return runs.at_work(folder, {'teacher': judge}, method=ogls.ogls(bound=None), samples=SAMPLES)


def judged(runtime, state, rewards=REWARDS):
  problems = runtime.stream().take(len(rewards) // SAMPLES)
  responses = verbs.sample(runtime, state.weights, problems, AT)
  texts = [f'{number}' for number in range(len(rewards))]
  responses = responses._replace(rollout=responses.rollout._replace(reward=rewards), texts=texts)
  return responses, verbs.score(runtime, state.weights, responses, AT)


def logits_behind(runtime, state, responses, context):
  """Logits of the student behind what a context shows, float64; rows without it are NaN."""
  part, weights = runtime.judges['teacher'].parts[0].members[0], state.weights
  reader = dataclasses.replace(part, spec=dataclasses.replace(part.spec, context=context))
  scenes = runtime.scenes(responses, AT)
  prompts = reader.prompts(scenes)
  request = runtime.requests['teacher']
  scores = reader.score_prompts(weights, prompts, responses.rollout, None, request)
  states, head = (np.asarray(x, np.float64) for x in (scores.hidden, reader.head(weights)))
  missing = np.array([prompt is None for prompt in prompts])
  return np.where(missing[:, None, None], np.nan, states @ head)


def mean_of(members):
  """Over those that are there."""
  stacked = np.array(members)
  return np.nansum(stacked, axis=0) / np.maximum(np.isfinite(stacked).sum(axis=0), 1)


def test_every_row_is_steered_by_the_siblings_that_it_has(tmp_path):
  strength = Ramp(begin=0.0, end=4.0, steps=4)  # 2 at step 2
  judge = steering.steered(introduction=';', siblings=SAMPLES, strength=strength, solution=False)
  runtime, state = at_work(tmp_path, judge)
  assert list(state.snapshots) == ['teacher/0']  # one copy, whatever is read
  responses, evidence = judged(runtime, state)
  got = evidence.scores['teacher']
  failed = np.repeat([True, True, False, False], SAMPLES) & (REWARDS == 0)
  assert np.asarray(got.known).any(axis=1).tolist() == failed.tolist()
  behind = lambda context: logits_behind(runtime, state, responses, context)
  right = mean_of([behind(steering.success(introduction=';', number=g)) for g in range(2)])
  wrong = mean_of([behind(steering.failure(introduction=';', number=g)) for g in range(3)])
  want = jax.nn.log_softmax(behind(None) + 2.0 * (right - wrong))
  head = np.asarray(runtime.judges['teacher'].head(state.weights))
  assert head.shape[0] == np.asarray(got.hidden).shape[-1] == runs.CONFIG.width
  ours = jax.nn.log_softmax(np.asarray(got.hidden) @ head)
  here = np.asarray(responses.rollout.mask) & failed[:, None]
  np.testing.assert_allclose(np.asarray(ours)[here], np.asarray(want)[here], atol=5e-5)


def test_without_a_side_nothing_is_judged_and_the_step_is_finite(tmp_path):
  judge = steering.steered(introduction=';', siblings=SAMPLES, solution=False)
  runtime, state = at_work(tmp_path, judge)
  responses, evidence = judged(runtime, state, np.zeros(len(REWARDS), np.float32))
  assert not np.asarray(evidence.mask).any()
  assert runtime.judges['teacher'].prompts(runtime.scenes(responses, AT)) == [None] * len(REWARDS)
  batch, _ = verbs.weigh(runtime, state.weights, evidence)
  _, row = verbs.update(runtime, state, batch)
  assert row['loss'] == 0 and row['grad_norm'] == 0


def test_the_row_itself_is_among_the_failed_ones_as_printed(tmp_path):
  runtime, state = at_work(tmp_path, steering.steered(introduction=';', siblings=SAMPLES))
  responses, _ = judged(runtime, state)
  scene = runtime.scenes(responses, AT)[1]  # failed, beside one right and one wrong response
  read = lambda context: (context(scene) or ({'content': ''},))[-1]['content']
  tail = lambda context: read(context)[len(scene.problem.messages[-1]['content']) :]
  with_intro = lambda text: f';{text}' if text else ''
  failures = [tail(steering.failure(introduction=';', number=g)) for g in range(3)]
  assert failures == [with_intro(text) for text in ('1', '2', '')]
  assert tail(steering.failure(introduction=';', number=0, own=False)) == with_intro('2')
  assert tail(steering.success(introduction=';', number=0)) == with_intro('0')
  assert (
    steering.success(introduction=';', number=0)(runtime.scenes(responses, AT)[0]) is None
  )  # it is right itself


def test_the_mean_of_right_attempts_needs_no_wrong_sibling(tmp_path):
  judge = steering.steered(
    introduction=';', siblings=SAMPLES, strength=1.0, failures=False, solution=False
  )
  assert [part[0] for part in judge.parts] == [0.0, 1.0]
  runtime, state = at_work(tmp_path, judge)
  _, evidence = judged(runtime, state)
  assert np.asarray(evidence.scores['teacher'].known).any(axis=1).sum() == 3


def test_a_trust_region_moves_from_the_first_student_to_the_present_one(tmp_path):
  judge = steering.trust_region(rate=Ramp(begin=0.0, end=1.0, steps=4))
  assert [ramps.at(judge.parts[0][0], step) for step in (0, 1, 4)] == [1.0, 0.75, 0.0]
  _, state = at_work(tmp_path, judge)
  assert list(state.snapshots) == ['teacher/0']
  for rate in (-0.1, 1.1, Ramp(begin=0.5, end=1.5, steps=3)):
    with pytest.raises(ValueError, match=r'rate must lie in \[0, 1\]'):
      steering.trust_region(rate=rate)


def test_settings_without_meaning_are_refused():
  with pytest.raises(ValueError, match='siblings at least 2'):
    steering.steered(siblings=1)
  with pytest.raises(ValueError, match='no members'):
    judges.averaged(members=())
  with pytest.raises(ValueError, match='coefficients must be finite'):
    judges.combined(parts=((float('nan'), judges.itself()),))
  watching = Stepped(name='k', begin=0.0, end=1.0, by=0.5, metric='length', above=1.0)
  with pytest.raises(ValueError, match='k looks at metrics, a coefficient follows the step'):
    judges.combined(parts=((watching, judges.itself()),))
