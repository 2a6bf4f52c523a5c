"""DistiLLM against its formula: both skew KLs, what bounds them, and who writes."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from evidence_worlds import (
  STUDENT_LOGITS,
  TEACHER_LOGITS,
  Paper,
  by_token,
  ours,
  paper,
  same,
)

from opd_jax import configuration, ramps
from opd_jax.claims import Nothing
from opd_jax.losses.divergences import ForwardKL, SkewForward, SkewReverse
from opd_jax.losses.rest_rules import Renormalised
from opd_jax.losses.supports import Support, TeacherTopK
from opd_jax.methods.distillm import VARIANTS, distillm
from opd_jax.methods.gkd import gkd
from opd_jax.training import moving

RECIPE = Path(__file__).parents[2] / 'experiments' / 'recipes' / 'distillm_adaptive.gin'


def kl(log_a, log_b):
  return (jnp.exp(log_a) * (log_a - log_b)).sum(-1)


def mixed(log_a, log_b, alpha):
  return jnp.log(alpha * jnp.exp(log_a) + (1 - alpha) * jnp.exp(log_b))


CASES = {
  'skew reverse': ({}, lambda of: kl(of.P, mixed(of.P, of.Q, 0.1))),
  'skew forward': (VARIANTS['skew forward'], lambda of: kl(of.Q, mixed(of.Q, of.P, 0.1))),
  'without skew': (VARIANTS['without skew'], lambda of: kl(of.P, of.Q)),
  'half': ({'divergence': SkewReverse(alpha=0.5)}, lambda of: kl(of.P, mixed(of.P, of.Q, 0.5))),
}


@pytest.mark.parametrize('settings, formula', CASES.values(), ids=CASES)
def test_it_is_the_published_formula(settings, formula):
  def loss(of: Paper):
    return by_token(of.mask, formula(of))

  same(ours(distillm(**settings)), paper(loss))


def test_with_next_to_no_skew_it_is_gkd():
  """The difference is of the size of α."""
  gradient = ours(distillm(divergence=SkewForward(alpha=1e-9)))[1]
  np.testing.assert_allclose(gradient, ours(gkd(divergence=ForwardKL()))[1], atol=1e-7)


def test_no_token_costs_more_than_the_skew_allows():
  """Teacher and student all but certain of different tokens: reverse KL is far above -log α, its skew is not."""
  far = 60.0 * (np.arange(STUDENT_LOGITS.shape[-1]) == 0)
  settings = {'student': STUDENT_LOGITS + far, 'teacher': TEACHER_LOGITS - far}
  assert ours(distillm(**VARIANTS['without skew']), **settings)[0] > 20
  assert -np.log(0.1) - 0.1 < ours(distillm(), **settings)[0] <= -np.log(0.1)


def test_in_the_recipe_the_student_writes_a_tenth_more_whenever_held_out_text_moves_away():
  """From given text alone; a whole run with such a fraction is in training/moving_test.py."""
  with jax.enable_x64(False):
    experiment, _ = configuration.build([str(RECIPE)], ['TEACHER = "tiny"'])
  (stage,), memory, fractions = experiment.stages, None, []
  numbers = moving.numbers_of(stage, experiment.evaluations)
  for distance in (2.0, 1.5, 1.6, 1.6, 1.7, 1.2, 1.3):
    memory = moving.after(numbers, memory, {'eval/sums/reverse_kl': distance})
    mix = ramps.settled(stage.mix, 0, moving.decisions(memory))
    by_student, by_teacher, given = mix.deal(60)
    assert by_student.sum() + given.sum() == 60 and not by_teacher.any()
    fractions.append(by_student.mean())
  np.testing.assert_allclose(fractions, [0, 0, 0.1, 0.1, 0.2, 0.2, 0.3], atol=1e-12)
  assert stage.steps == 20 and not experiment.evaluations[0].decoding.rules


def test_the_fraction_says_who_writes_and_a_support_takes_the_claim_away():
  assert distillm().rollout.student == distillm().rollout.data == 0.5
  assert distillm(**VARIANTS['on-policy']).rollout.data == 0.0
  assert distillm(**VARIANTS['off-policy']).rollout.student == 0.0
  support = Support(entries=TeacherTopK(4), rest=Renormalised())
  assert isinstance(distillm(support=support).claim, Nothing)
