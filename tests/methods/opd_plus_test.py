"""OPD+ against its formula, for every divergence and its naive control."""

import jax.numpy as jnp
import pytest
from evidence_worlds import ours, paper, reinforce, same

from opd_jax.losses.divergences import ForwardKL, Jeffreys, ReverseKL
from opd_jax.methods.opd import opd
from opd_jax.methods.opd_plus import VARIANTS, opd_plus

CASES = {
  'jensen-shannon': ({}, lambda u: 0.5 * jnp.log((1 + u) / 2)),
  'forward_kl': (VARIANTS['forward_kl'], lambda u: u - 1),
  'naive': (
    VARIANTS['naive'],
    lambda u: -0.5 * (u * jnp.log(u) - (1 + u) * jnp.log((1 + u) / 2)),
  ),
  'jeffreys': ({'divergence': Jeffreys()}, lambda u: u - 1 + jnp.log(u)),
  'bounded': (
    {'divergence': ForwardKL(), 'bound': 0.5},
    lambda u: jnp.clip(u, jnp.exp(-0.5), jnp.exp(0.5)) - 1,
  ),
}


@pytest.mark.parametrize('settings, advantage', CASES.values(), ids=CASES)
def test_it_is_the_published_formula(settings, advantage):
  want = paper(lambda of: reinforce(of, advantage(jnp.exp(of.q - of.p))))
  same(ours(opd_plus(**settings)), want)


@pytest.mark.parametrize('corrected', [True, False])
def test_with_reverse_kl_it_is_opd_also_where_it_is_naive(corrected):
  """The naive reward is right for reverse KL: -f(u) = log u."""
  got = ours(opd_plus(divergence=ReverseKL(), corrected=corrected, bound=1e9))
  same(got, ours(opd()))
