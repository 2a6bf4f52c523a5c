"""SDFT against its formula: tokens that do not count, the mean of responses, and one ratio for each."""

import jax.numpy as jnp
import numpy as np
import pytest
from evidence_worlds import (
  REFERENCE_LOGITS,
  RESPONSE,
  STUDENT_LOGITS,
  TEACHER_LOGITS,
  by_sequence,
  from_logits,
  ours,
  paper,
  same,
  through_the_pass,
  weigh,
)

from opd_jax.methods.sdft import VARIANTS, sdft

FORWARD = lambda of: (jnp.exp(of.Q) * (of.Q - of.P)).sum(-1)
REVERSE = lambda of: (jnp.exp(of.P) * (of.P - of.Q)).sum(-1)
BEHIND = lambda mask, skip=3: mask & (jnp.arange(mask.shape[1]) >= skip)
CASES = {
  'default': ({}, lambda of: by_sequence(BEHIND(of.mask), FORWARD(of))),
  'as printed': (VARIANTS['as printed'], lambda of: by_sequence(BEHIND(of.mask), REVERSE(of))),
  'every token': (VARIANTS['every token'], lambda of: by_sequence(of.mask, FORWARD(of))),
}


@pytest.mark.parametrize('settings, formula', CASES.values(), ids=CASES)
def test_it_is_the_published_formula(settings, formula):
  same(ours(sdft(**settings)), paper(formula))


def test_a_response_has_one_truncated_ratio():
  logits = STUDENT_LOGITS, TEACHER_LOGITS, REFERENCE_LOGITS
  evidence, targets = from_logits(*logits, RESPONSE, sdft())
  apart = np.random.RandomState(1).randn(*RESPONSE.shape)
  drawn = evidence.rollout._replace(behaviour_logp=evidence.rollout.logp - apart)
  terms = weigh(sdft())(evidence._replace(rollout=drawn))

  def formula(of):
    mask = BEHIND(of.mask)
    ratio = jnp.where(mask, jnp.minimum(jnp.exp(apart), 2.0), 0.0).sum(1) / mask.sum(1).clip(1)
    return by_sequence(mask, ratio[:, None] * FORWARD(of))

  same(through_the_pass(STUDENT_LOGITS, RESPONSE, targets, terms), paper(formula))


def test_a_negative_skip_is_refused():
  with pytest.raises(ValueError, match='skip must not be negative, got -1'):
    sdft(skip=-1)
