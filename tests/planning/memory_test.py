"""What a stage would hold: everything that is known from shapes, and the names of what is not."""

from opd_jax import configuration
from opd_jax.planning import memory

FILES = [
  'experiments/models/small.gin',
  'experiments/data/sums.gin',
  'experiments/methods/opd.gin',
  'experiments/judges/teacher.gin',
]


def planned(*bindings: str):
  experiment, _ = configuration.build(FILES, list(bindings))
  stage = experiment.stages[0]
  return memory.held(experiment, stage), memory.unknown(experiment, stage)


def test_a_teacher_counts_with_its_own_shape_and_type():
  held, unknown = planned("TEACHER = 'Qwen/Qwen3-0.6B'", "judges.frozen.dtype = 'bfloat16'")
  assert held.judges == 2 * 596_049_920 and not unknown


def test_a_teacher_whose_shape_nobody_knows_is_named():
  held, unknown = planned("TEACHER = 'somebody/model'")
  assert held.judges == 0 and unknown == ['somebody/model']


def test_the_cache_holds_the_rows_in_flight():
  held, _ = planned("TEACHER = 'tiny'", 'PROMPTS = 5', 'SAMPLES = 2', 'BUDGET = 7')
  entries = 2 * 2 * 2 * 16  # keys and values, two layers, two heads of 16
  assert held.cache == 5 * 2 * 7 * entries * 4
