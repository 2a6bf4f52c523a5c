"""OPD² against its formula, its ablations, and the expectation that its centring takes away."""

import jax.numpy as jnp
import numpy as np
import pytest
from evidence_worlds import TEACHER_LOGITS, ours, paper, reinforce, same

from opd_jax.methods.opd2 import VARIANTS, opd2
from opd_jax.methods.vopd import vopd


def formula(*, conditional=True, centred=True, delta=True):
  def loss(of):
    mean = lambda x: (jnp.exp(of.P) * x).sum(-1) if centred else 0.0
    gain = of.q - of.r - mean(of.Q - of.R)
    gap = of.q - of.p + mean(of.P - of.Q)
    if not delta:
      return reinforce(of, 0.1 * gap)
    return reinforce(of, 0.1 * jnp.where((gain * gap > 0) | (not conditional), gain, 0.0))

  return loss


CASES = {
  'published': ({}, {}),
  'unconditional': (VARIANTS['unconditional'], {'conditional': False}),
  'uncentred': (VARIANTS['uncentred'], {'centred': False}),
  'without delta': (VARIANTS['without delta'], {'delta': False}),
}


@pytest.mark.parametrize('settings, papers', CASES.values(), ids=CASES)
def test_it_is_the_published_formula(settings, papers):
  same(ours(opd2(**settings)), paper(formula(**papers)))


def test_without_delta_it_is_vopd_at_a_tenth():
  tenth = np.asarray(ours(vopd())[1]) / 10
  np.testing.assert_allclose(ours(opd2(delta=False))[1], tenth, rtol=0, atol=1e-15)


def test_a_student_that_is_its_teacher_stays_only_where_the_condition_holds_it():
  """At the teacher every gap is zero, and no gain has its sign; without the condition the gain is followed beyond."""
  stays = ours(opd2(), student=TEACHER_LOGITS)[1]
  np.testing.assert_array_equal(stays, 0.0)
  assert np.abs(ours(opd2(conditional=False), student=TEACHER_LOGITS)[1]).max() > 1e-3


def test_a_scale_without_meaning_is_refused():
  with pytest.raises(ValueError, match='scale must be above 0, got 0'):
    opd2(scale=0.0)
