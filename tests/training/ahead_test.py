"""Programs of other widths are compiled before a batch needs them; where one cannot be, the run goes on."""

import threading

import jax
import numpy as np
import pytest
import tiny_runs as runs

from opd_jax import judges, responses
from opd_jax.inference import decode_ahead
from opd_jax.inference.sampler import Sampling
from opd_jax.training import ahead, shapes, stage_programs, verbs
from opd_jax.training.state import RunPosition


@pytest.mark.parametrize(
  'present, maximum, order',
  [(12, 16, [8, 16]), (16, 40, [12, 24, 8, 32, 40]), (8, 8, []), (5, 5, [])],
)
def test_widths_are_those_of_batches_and_the_nearest_come_first(present, maximum, order):
  assert stage_programs.widths(present, maximum) == order


def test_slots_get_room():
  sampling = Sampling(budget=100, segment=32)
  assert decode_ahead.columns_of(sampling, 20, 4096) == [64, 128]
  assert decode_ahead.columns_of(sampling, 20, 80) == [64, 80]


def weighed(runtime, state, problems, position):
  sampled = verbs.sample(runtime, state.weights, problems, position)
  evidence = verbs.score(runtime, state.weights, sampled, position)
  return shapes.Example(sampled, evidence, verbs.weigh(runtime, state.weights, evidence)[0])


@pytest.fixture(scope='module')
def stage(tmp_path_factory):
  """A stage, and a batch that it has weighed."""
  folder = tmp_path_factory.mktemp('stage')
  teacher = {'teacher': judges.frozen(runs.teacher_folder(folder))}
  runtime, state = runs.at_work(folder, teacher, microbatches=2)
  example = weighed(runtime, state, runtime.stream().take(4), RunPosition())
  state, _ = verbs.update(runtime, state, example.batch, dry=True)
  return runtime, state, example, RunPosition()


def test_a_batch_of_another_width_finds_its_programs(stage):
  runtime, state, example, position = stage
  for program in ahead.programs_of(runtime, state, example, position):
    program.compile()
  rollout = example.responses.rollout
  present, width = (
    rollout.response.shape[1],
    stage_programs.widths(rollout.response.shape[1], runs.BUDGET)[-1],
  )
  fit = lambda x: np.pad(x, ((0, 0), (0, max(width - present, 0))))[:, :width]
  fitted = jax.tree.map(lambda x: fit(x) if np.ndim(x) == 2 else x, rollout._replace(prompt=None))
  other = example.responses._replace(rollout=fitted._replace(prompt=rollout.prompt))
  compiled = []
  note = lambda event, seconds, **facts: compiled.append(facts.get('fun_name'))
  jax.monitoring.register_event_duration_secs_listener(note)
  try:
    evidence = verbs.score(runtime, state.weights, other, position)
    batch, _ = verbs.weigh(runtime, state.weights, evidence)
    verbs.update(runtime, state, batch)
  finally:
    jax.monitoring.unregister_event_duration_listener(note)
  assert evidence.mask.shape[1] == width != present
  large = {'score', 'taken', 'of_evidence', '<lambda>', 'add'}
  assert not large & {str(name).removeprefix('jit(').removesuffix(')') for name in compiled}
  assert responses.trimmed(rollout).response.shape[1] == present


def test_a_processor_that_computes_the_steps_does_not_compile_ahead(stage, monkeypatch):
  assert [
    ahead.threads_of(*each) for each in (('cpu', 64), ('gpu', 16), ('tpu', 2), ('gpu', 1))
  ] == [0, 4, 1, 1]
  monkeypatch.setattr(ahead, 'programs_of', lambda *_: pytest.fail('nobody asked for it'))
  with ahead.Ahead(print) as background:
    background.begin(*stage)


def test_what_cannot_be_compiled_ahead_is_said_and_stops_nothing(stage, monkeypatch):
  def broken():
    raise RuntimeError('no room\nfor it')

  def sound():
    done.set()
    return jax.jit(lambda: 0).lower()

  done, said = threading.Event(), []
  programs = [stage_programs.Program('score', 'one', lower) for lower in (broken, sound)]
  monkeypatch.setattr(ahead, 'programs_of', lambda *_: programs)
  with ahead.Ahead(said.append, threads=1) as background:
    background.begin(*stage)
    background.begin(*stage)  # the same stage: once is enough
    assert done.wait(30)
  assert [text.rpartition(',')[0] or text for text in said] == [
    'compiling ahead: one program failed (no room)',
    'compiling ahead: 1 of 2 programs',
    'compiling ahead: 2 of 2 programs',
  ]
