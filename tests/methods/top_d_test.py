"""TOP-D against its formula in loops: the proximal reward, returns and groups; and the divergence behind the reward."""

import jax.numpy as jnp
import numpy as np
import pytest
from evidence_worlds import (
  GROUPS,
  MASK,
  TEACHER_LOGITS,
  at_ratio_one,
  ours,
  paper,
  stop,
)

from opd_jax.losses.divergences import JensenShannon
from opd_jax.methods.opd import opd
from opd_jax.methods.opd_plus import opd_plus
from opd_jax.methods.top_d import VARIANTS, top_d


def formula(*, a=0.1, returns=True, whiten=True):
  def loss(of):
    u = np.exp(np.asarray(stop(of.q - of.p)))
    reward, score = np.log(a * u + 1 - a), np.zeros(MASK.shape)
    for row, counts in enumerate(MASK):
      here = np.flatnonzero(counts)
      for number, column in enumerate(here):
        later = reward[row, here[number + 1 :]]
        score[row, column] = reward[row, column] + (later.mean() if returns and len(later) else 0)
    if whiten:
      for group in set(GROUPS):
        mine = MASK & (np.array(GROUPS) == group)[:, None]
        score[mine] = (score[mine] - score[mine].mean()) / score[mine].std()
    return at_ratio_one(of, jnp.asarray(score))

  return loss


CASES = {
  'published': ({}, {}),
  'fraction 0.2': (VARIANTS['fraction 0.2'], {'a': 0.2}),
  'reward only': (VARIANTS['reward only'], {'returns': False, 'whiten': False}),
  'not whitened': ({'whiten': False}, {'whiten': False}),
  'no returns': ({'returns': False}, {'returns': False}),
}


@pytest.mark.parametrize('settings, papers', CASES.values(), ids=CASES)
def test_it_is_the_published_formula(settings, papers):
  got, want = ours(top_d(**settings)), paper(formula(**papers))
  np.testing.assert_allclose(got[0], want[0], rtol=1e-11, atol=1e-15)  # whitened, it is zero
  np.testing.assert_allclose(got[1], want[1], rtol=0, atol=1e-12)


def test_the_bare_reward_is_that_of_a_jensen_shannon_divergence_and_at_one_it_is_opd():
  plain = lambda a: ours(top_d(fraction=a, returns=False, whiten=False))[1]
  jsd = ours(opd_plus(divergence=JensenShannon(beta=0.3), bound=1e9))[1]
  np.testing.assert_allclose(plain(0.3), np.asarray(jsd) / 0.7, rtol=0, atol=1e-14)
  np.testing.assert_allclose(plain(1.0), ours(opd())[1], rtol=0, atol=1e-14)


@pytest.mark.parametrize('settings', [each for each, _ in CASES.values()], ids=CASES)
def test_a_student_that_is_its_teacher_stays(settings):
  gradient = ours(top_d(**settings), student=TEACHER_LOGITS)[1]
  np.testing.assert_allclose(gradient, 0.0, rtol=0, atol=1e-12)
