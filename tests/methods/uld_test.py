"""ULD on one vocabulary against its formula, and what it cannot see."""

import jax.numpy as jnp
import numpy as np
import pytest
from evidence_worlds import STUDENT_LOGITS, TEACHER_LOGITS, V, by_token, ours, paper, same

from opd_jax.methods.uld import uld


@pytest.mark.parametrize('k', [1, 4, V])
def test_it_is_the_published_formula(k):
  falling = lambda log: -jnp.sort(-jnp.exp(log), axis=-1)[..., :k]
  distance = lambda of: jnp.abs(falling(of.P) - falling(of.Q)).sum(-1)
  same(ours(uld(k=k)), paper(lambda of: by_token(of.mask, distance(of))))


def test_the_names_of_the_teachers_tokens_do_not_matter():
  turned = TEACHER_LOGITS[..., np.random.RandomState(0).permutation(V)]
  same(ours(uld(k=V), teacher=turned), ours(uld(k=V)))
  assert abs(ours(uld(k=V), teacher=STUDENT_LOGITS[..., ::-1])[0]) < 1e-15
