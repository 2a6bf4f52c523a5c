"""AsyncOPD against its formula on text of other weights, and its expectation by enumeration."""

import jax.numpy as jnp
import numpy as np
import pytest
from evidence_worlds import (
  REFERENCE_LOGITS,
  RESPONSE,
  STUDENT_LOGITS,
  TEACHER_LOGITS,
  V,
  by_token,
  from_logits,
  ours,
  paper,
  same,
  stop,
  through_the_pass,
  weigh,
)

from opd_jax.methods.async_opd import VARIANTS, async_opd
from opd_jax.methods.opd import opd

LOG_B = REFERENCE_LOGITS - np.log(np.exp(REFERENCE_LOGITS).sum(-1, keepdims=True))


def stale(method, response=RESPONSE, program=None):
  """Loss and gradient on text that the reference wrote."""
  logits = STUDENT_LOGITS, TEACHER_LOGITS, REFERENCE_LOGITS
  evidence, targets = from_logits(*logits, response, method)
  drawn = np.take_along_axis(LOG_B, response[..., None], axis=-1)[..., 0]
  rollout = evidence.rollout._replace(behaviour_logp=drawn)
  terms = (program or weigh(method))(evidence._replace(rollout=rollout))
  return through_the_pass(STUDENT_LOGITS, response, targets, terms)


def formula(*, present=True, clip=None):
  def loss(of):
    drawn = jnp.take_along_axis(LOG_B, RESPONSE[..., None], axis=-1)[..., 0]
    ratio, advantage = jnp.exp(of.p - drawn), of.q - (stop(of.p) if present else drawn)
    if clip is None:
      return by_token(of.mask, -ratio * advantage)
    held = jnp.clip(ratio, 1 - clip, 1 + clip)
    return by_token(of.mask, -jnp.minimum(ratio * advantage, held * advantage))

  return loss


CASES = {
  'published': ({}, {}),
  'present, clipped': (VARIANTS['present, clipped'], {'clip': 0.2}),
  'old': (VARIANTS['old'], {'present': False}),
  'old, clipped': (VARIANTS['old, clipped'], {'present': False, 'clip': 0.2}),
}


@pytest.mark.parametrize('settings, papers', CASES.values(), ids=CASES)
def test_it_is_the_published_formula(settings, papers):
  same(stale(async_opd(**settings)), paper(formula(**papers)))


def expected(method):
  """Over the writer: every token once at every position, weighed with the writer's probability of it."""
  program = weigh(method)
  gradient = lambda token: stale(method, np.full_like(RESPONSE, token), program)[1]
  return sum(np.exp(LOG_B[..., token, None]) * gradient(token) for token in range(V))


def test_however_old_the_text_is_it_is_the_gradient_of_reverse_kl_at_its_prefixes():
  kl = lambda of, other: by_token(of.mask, (jnp.exp(of.P) * (of.P - other)).sum(-1))
  exact = paper(lambda of: kl(of, of.Q))[1]
  np.testing.assert_allclose(expected(async_opd()), exact, rtol=0, atol=1e-13)
  away = paper(lambda of: kl(of, of.Q) - kl(of, LOG_B))[1]
  np.testing.assert_allclose(expected(async_opd(present=False)), away, rtol=0, atol=1e-13)
  assert np.abs(away - exact).max() > 1e-3


@pytest.mark.parametrize('settings', [each for each, _ in CASES.values()], ids=CASES)
def test_fresh_it_is_opd(settings):
  np.testing.assert_allclose(ours(async_opd(**settings))[1], ours(opd())[1], rtol=0, atol=1e-14)


def test_only_a_present_advantage_is_scored_anew_and_a_clip_of_nothing_is_refused():
  assert async_opd().reweigh and not async_opd(present=False).reweigh
  with pytest.raises(ValueError, match='clip must be above 0, or None'):
    async_opd(clip=0.0)
