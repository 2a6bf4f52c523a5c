"""What a run costs, against numbers that were worked out by hand. `forward(tiny, 3)` is 568,320 (see its docstring)."""

import dataclasses
from pathlib import Path

import pytest

from opd_jax import configuration, judges, rollouts
from opd_jax.models import lora, presets
from opd_jax.planning import flops
from opd_jax.planning.cost import cost_of, shape_of
from opd_jax.planning.flops import CHIPS, Cost

ROOT = Path(__file__).parent.parent.parent / 'experiments'
ONE = 568_320  # FLOPs of a response of three tokens


def experiment(method: str, *bindings: str):
  """Two steps of two problems twice, of three tokens each, and an evaluation of five problems."""
  names = ('models/tiny', 'data/sums', f'methods/{method}', 'judges/teacher')
  files = [str(ROOT / f'{name}.gin') for name in names]
  small = ['STEPS = 2', 'PROMPTS = 2', 'SAMPLES = 2', 'BUDGET = 3', 'TEACHER = "cell"']
  asked = ['evaluator.Evaluation.problems = 5', 'evaluator.Evaluation.every = 1']
  return configuration.build(files, [*small, *asked, *bindings])[0]


def cost(method: str, *bindings: str, **changes) -> Cost:
  known = experiment(method, *bindings)
  stages = tuple(dataclasses.replace(stage, **changes) for stage in known.stages)
  wide = presets.tiny(num_layers=4)
  return cost_of(dataclasses.replace(known, stages=stages), {'cell': wide})


TEACHER = 2 * 3 * (2 * 36_864 + 94_208) + 2 * 3_072  # two layers more, of 36,864 weights each


def test_a_run_of_opd_by_hand():
  found = cost('opd')
  assert found.train == 2 * 4 * 3 * ONE
  assert found.score == 2 * 4 * (TEACHER + ONE)
  # Before the first step, after the first and after the second: greedy, so the teacher is not asked.
  assert found.sample == 2 * 4 * ONE + 3 * 5 * ONE
  assert (found.tokens, found.sampled) == (24, 24 + 45)
  # Each time all rows are in flight: three steps read 94,208 weights; and 128 of cache for 1 + 2 + 3 tokens of a row.
  assert found.read == 4 * (5 * 3 * 94_208 + 23 * 6 * 128)


def test_who_writes_and_who_is_asked_is_paid():
  seqkd, sft = cost('seqkd'), cost('sft', judges={})
  assert seqkd.sample == 2 * 4 * TEACHER + 3 * 5 * ONE and seqkd.score == 2 * 4 * TEACHER
  assert sft.sample == 3 * 5 * ONE and sft.score == 0
  exopd = cost('exopd')
  assert exopd.score == 2 * 4 * (TEACHER + 2 * ONE)  # the reference is the student's size
  half = cost('opd', rollout=rollouts.mixture(student=0.5))
  assert half.sample == 2 * 2 * ONE + 3 * 5 * ONE


def test_what_is_kept_and_repeated_is_paid():
  plain, again = cost('opd'), cost('opd', 'presets.tiny.remat = "full"')
  assert again.train * 3 == plain.train * 4 and again.sample == plain.sample
  assert cost('opd', updates=2).train == 2 * plain.train
  sampled = cost('opd', 'evaluator.Evaluation.decoding = @decoding.Decoding()')
  assert (
    sampled.score == plain.score + 3 * 5 * TEACHER
  )  # of a model's own text the reverse KL is measured


def test_few_slots_read_the_weights_more_often():
  many, few = (flops.writing(presets.tiny(), 64, 10, slots=n) for n in (64, 16))
  cache = 64 * 55 * 128 * 4
  assert few.read - cache == 4 * (many.read - cache) and few.sample == many.sample
  hours = lambda cost: cost.hours(CHIPS['h100'], 0.4).total
  assert hours(few) > hours(many)


def test_a_mixture_of_experts_computes_with_few_of_its_weights():
  config = shape_of('Qwen/Qwen3-30B-A3B')
  assert flops.weights_of(config, active=False) / 1e9 == pytest.approx(30.53 - 0.31, abs=0.01)
  assert 2.9 < flops.weights_of(config) / 1e9 < 3.1
  dense = shape_of('Qwen/Qwen3-32B')
  assert flops.weights_of(dense) / 1e9 == pytest.approx(32.76 - 0.78, abs=0.01)


def test_a_shape_that_only_files_would_tell_is_refused():
  with pytest.raises(
    ValueError, match='the shape of runs/a/student is not known without its files'
  ):
    shape_of('runs/a/student')
  judge = {'teacher': judges.frozen('qwen3_4b', dtype='bfloat16')}
  assert cost('opd', judges=judge).score > 1e11


def test_frozen_weights_have_no_gradient_to_pay_for():
  plain = presets.tiny()
  thin = presets.tiny(lora=lora.Lora(rank=4, targets=('q_proj', 'v_proj')))
  saved = 2 * 94_208 * 3
  assert (
    flops.training(thin, 1, 3).train
    == flops.training(plain, 1, 3).train - saved + 3 * 2 * 1_792 * 3
  )
  assert flops.scoring(thin, 1, 3) == flops.scoring(plain, 1, 3)
