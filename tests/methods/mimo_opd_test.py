"""The OPD of MiMo against both of its forms."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from evidence_worlds import TEACHER_LOGITS, K, V, by_sequence, ours, paper, same, stop

from opd_jax.losses.rest_rules import Stopped
from opd_jax.methods.mimo_opd import VARIANTS, mimo_opd
from opd_jax.methods.safe_top_k import safe_top_k


@pytest.mark.parametrize('bound', [5.0, 0.4])
def test_it_is_the_published_policy_gradient(bound):
  advantage = lambda of: stop(jnp.clip(of.q - of.p, -bound, bound))
  want = paper(lambda of: by_sequence(of.mask, -advantage(of) * of.p))
  same(ours(mimo_opd(bound=bound)), want)


def test_it_is_the_published_sum_over_the_top_k():
  def formula(of):
    best, ids = jax.lax.top_k(of.Q, K)
    own = jnp.take_along_axis(of.P, ids, -1)
    p, q = jnp.exp(own), jnp.exp(best)
    return by_sequence(of.mask, (p * (own - best) - p + q).sum(-1))

  same(ours(mimo_opd(k=K, **VARIANTS['top k'])), paper(formula))


def test_the_extra_terms_leave_the_gradient_of_a_stopped_sum():
  stopped = ours(safe_top_k(k=K, of='teacher', rest=Stopped()))[1]
  top = ours(mimo_opd(k=K, top=True))[1]
  np.testing.assert_allclose(top, stopped, rtol=0, atol=1e-15)


def test_with_every_entry_the_extra_terms_are_nothing():
  whole = paper(lambda of: by_sequence(of.mask, (jnp.exp(of.P) * (of.P - of.Q)).sum(-1)))
  same(ours(mimo_opd(k=V, top=True)), whole)


def test_a_student_that_is_its_teacher_stays():
  for settings in ({}, VARIANTS['top k']):
    gradient = ours(mimo_opd(k=K, **settings), student=TEACHER_LOGITS)[1]
    np.testing.assert_allclose(gradient, 0.0, rtol=0, atol=1e-15)


def test_a_bound_without_meaning_is_refused():
  with pytest.raises(ValueError, match='bound must be above 0, got 0'):
    mimo_opd(bound=0.0)
