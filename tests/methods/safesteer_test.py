"""SafeSteer against its formula and its ablations."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from evidence_worlds import TEACHER_LOGITS, by_sequence, ours, paper, same

from opd_jax.methods.safesteer import VARIANTS, safesteer

S = (7, 1, 4)


def raw(log_p, log_q):
  return (jnp.exp(log_p) * (log_p - log_q)).sum(-1)


CASES = {
  'published': ({'columns': S}, lambda of: raw(of.P[..., S], of.Q[..., S])),
  'renormalised': (
    {'columns': S, **VARIANTS['renormalised']},
    lambda of: raw(*(jax.nn.log_softmax(x[..., S]) for x in (of.P, of.Q))),
  ),
  'forward_kl': (
    {'columns': S, **VARIANTS['forward_kl']},
    lambda of: raw(of.Q[..., S], of.P[..., S]),
  ),
  'whole vocabulary': (VARIANTS['whole vocabulary'], lambda of: raw(of.P, of.Q)),
}


@pytest.mark.parametrize('settings, formula', CASES.values(), ids=CASES)
def test_it_is_the_published_formula(settings, formula):
  want = paper(lambda of: by_sequence(of.mask, formula(of)))
  same(ours(safesteer(**settings)), want)


def test_at_the_teacher_the_plain_sum_still_takes_mass_from_the_columns():
  """q = p lies below e p: the logits of the columns fall. Renormalised, nothing moves."""
  gradient = np.asarray(ours(safesteer(columns=S), student=TEACHER_LOGITS)[1])
  assert (gradient[..., S].sum(-1) >= 0).all() and gradient[..., S].max() > 1e-3
  closed = ours(safesteer(columns=S, **VARIANTS['renormalised']), student=TEACHER_LOGITS)[1]
  np.testing.assert_allclose(closed, 0.0, rtol=0, atol=1e-15)
