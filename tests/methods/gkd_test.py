"""GKD against its formula: whole distributions, a teacher's top k, other temperatures."""

import jax
import jax.numpy as jnp
import pytest
from evidence_worlds import K, Paper, by_token, ours, paper, same, top_kl

from opd_jax.claims import Converges, Nothing
from opd_jax.losses.divergences import ForwardKL
from opd_jax.losses.rest_rules import Renormalised
from opd_jax.losses.supports import Support, TeacherTopK
from opd_jax.methods.gkd import VARIANTS, gkd


def half_jensen_shannon(log_p, log_q):
  log_m = jnp.log((jnp.exp(log_p) + jnp.exp(log_q)) / 2)
  return 0.5 * (jnp.exp(log_p) * (log_p - log_m) + jnp.exp(log_q) * (log_q - log_m)).sum(-1)


def tempered(of: Paper):
  soft = lambda log: jax.nn.log_softmax(log / 0.9)
  return half_jensen_shannon(soft(of.P), soft(of.Q))


TOP = {
  'divergence': ForwardKL(),
  'support': Support(entries=TeacherTopK(K), rest=Renormalised()),
}
CASES = {
  'default': ({}, lambda of: half_jensen_shannon(of.P, of.Q)),
  'forward_kl on-policy': (
    VARIANTS['forward_kl on-policy'],
    lambda of: (jnp.exp(of.Q) * (of.Q - of.P)).sum(-1),
  ),
  'temperature 0.9': (VARIANTS['temperature 0.9'], tempered),
  'top k': (TOP, top_kl),
}


@pytest.mark.parametrize('settings, formula', CASES.values(), ids=CASES)
def test_it_is_the_published_formula(settings, formula):
  same(ours(gkd(**settings)), paper(lambda of: by_token(of.mask, formula(of))))


def test_it_mixes_writers_and_claims_only_what_it_holds():
  assert gkd().rollout.student == gkd().rollout.data == 0.5
  assert gkd(**VARIANTS['forward_kl on-policy']).rollout.data == 0.0
  assert isinstance(gkd(temperature=0.9).claim, Converges)
  assert isinstance(gkd(**TOP).claim, Nothing)
