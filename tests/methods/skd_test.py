"""SKD against its formula, and who writes."""

import jax.numpy as jnp
import pytest
from evidence_worlds import by_token, ours, paper, same

from opd_jax.claims import Unbiased
from opd_jax.losses.divergences import ForwardKL, ReverseKL
from opd_jax.methods.skd import VARIANTS, skd

CASES = {
  'default': ({}, lambda of: (jnp.exp(of.Q) * (of.Q - of.P)).sum(-1)),
  'reverse KL': (VARIANTS['reverse KL'], lambda of: (jnp.exp(of.P) * (of.P - of.Q)).sum(-1)),
  'no replacement': (
    VARIANTS['no replacement'],
    lambda of: (jnp.exp(of.Q) * (of.Q - of.P)).sum(-1),
  ),
}


@pytest.mark.parametrize('settings, formula', CASES.values(), ids=CASES)
def test_it_is_the_published_formula(settings, formula):
  same(ours(skd(**settings)), paper(lambda of: by_token(of.mask, formula(of))))


def test_it_claims_its_divergence_and_writes_beside_the_teacher_unless_told_not_to():
  assert skd().claim == Unbiased(divergence=ForwardKL())
  assert skd(divergence=ReverseKL()).claim == Unbiased(divergence=ReverseKL())
  assert skd().rollout.beside == 'teacher'
  assert skd(**VARIANTS['no replacement']).rollout.beside is None
