"""Log-compressed OPD against its formula, its clip, and both limits."""

import jax.numpy as jnp
import numpy as np
import pytest
from evidence_worlds import TEACHER_LOGITS, at_ratio_one, ours, paper, same

from opd_jax.methods.log_opd import VARIANTS, log_opd
from opd_jax.methods.opd import opd


def compressed(gap):
  return jnp.where(gap > 0, jnp.log(1 + gap * (gap > 0)), -jnp.log(1 - gap * (gap <= 0)))


CASES = {
  'compressed': ({}, compressed),
  'clipped': (VARIANTS['clipped'], lambda gap: jnp.minimum(jnp.maximum(gap, -5), 5)),
  'clipped to a half': ({'bound': 0.5}, lambda gap: jnp.minimum(jnp.maximum(gap, -0.5), 0.5)),
}


@pytest.mark.parametrize('settings, advantage', CASES.values(), ids=CASES)
def test_it_is_the_published_formula(settings, advantage):
  same(ours(log_opd(**settings)), paper(lambda of: at_ratio_one(of, advantage(of.q - of.p))))


def test_near_the_teacher_it_is_opd_and_so_it_is_without_a_bound():
  student = TEACHER_LOGITS + 1e-6 * np.random.RandomState(0).randn(*TEACHER_LOGITS.shape)
  near, plain = (np.asarray(ours(each, student=student)[1]) for each in (log_opd(), opd()))
  np.testing.assert_allclose(near, plain, rtol=0, atol=1e-5 * np.abs(plain).max())
  np.testing.assert_allclose(ours(log_opd(bound=1e9))[1], ours(opd())[1], rtol=0, atol=1e-14)
