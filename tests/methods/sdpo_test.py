"""SDPO against its formula: the student's best k with a tail, two truncated ratios, and rows that are shown nothing."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from evidence_worlds import (
  REFERENCE_LOGITS,
  RESPONSE,
  STUDENT_LOGITS,
  TEACHER_LOGITS,
  K,
  by_token,
  from_logits,
  ours,
  paper,
  same,
  stop,
  through_the_pass,
  weigh,
)

from opd_jax.method import Evidence
from opd_jax.methods.sdpo import VARIANTS, sdpo


def closed(of):
  ids = jax.lax.top_k(stop(of.P), K)[1]
  at = lambda log: jnp.exp(jnp.take_along_axis(log, ids, -1))
  return [jnp.concatenate([x, 1 - x.sum(-1, keepdims=True)], -1) for x in (at(of.P), at(of.Q))]


def jensen_shannon(of):
  p, q = closed(of)
  m = (p + q) / 2
  return 0.5 * (p * jnp.log(p / m) + q * jnp.log(q / m)).sum(-1)


def reverse(of):
  p, q = closed(of)
  return (p * jnp.log(p / q)).sum(-1)


CASES = {'scalar': ({}, jensen_shannon), 'rich': (VARIANTS['rich feedback'], reverse)}


@pytest.mark.parametrize('settings, formula', CASES.values(), ids=CASES)
def test_it_is_the_published_formula(settings, formula):
  same(ours(sdpo(k=K, **settings)), paper(lambda of: by_token(of.mask, formula(of))))


def test_ratios_of_the_sampler_and_of_the_present_student_are_truncated_apart():
  method, moved = (
    sdpo(k=K),
    STUDENT_LOGITS + 0.7 * np.random.RandomState(2).randn(*STUDENT_LOGITS.shape),
  )
  logits = STUDENT_LOGITS, TEACHER_LOGITS, REFERENCE_LOGITS
  evidence, targets = from_logits(*logits, RESPONSE, method)
  old, apart = evidence.scores['student'].logp, np.random.RandomState(1).randn(*RESPONSE.shape)
  drawn = evidence.rollout._replace(behaviour_logp=old - apart)
  terms = weigh(method)(evidence._replace(rollout=drawn))

  def formula(of):
    # Entries are the best of the student that was asked, which is the one before the update.
    ids = jax.lax.top_k(jnp.asarray(STUDENT_LOGITS), K)[1]
    at = lambda log: jnp.exp(jnp.take_along_axis(log, ids, -1))
    p, q = [jnp.concatenate([x, 1 - x.sum(-1, keepdims=True)], -1) for x in (at(of.P), at(of.Q))]
    m = (p + q) / 2
    d = 0.5 * (p * jnp.log(p / m) + q * jnp.log(q / m)).sum(-1)
    present = jnp.minimum(jnp.exp(stop(of.p) - old), 2.0)
    return by_token(of.mask, jnp.minimum(jnp.exp(apart), 2.0) * present * d)

  same(through_the_pass(moved, RESPONSE, targets, terms), paper(formula, student=moved))


def test_a_row_that_is_shown_nothing_leaves_numerator_and_denominator():
  method = sdpo(k=K)
  evidence, targets = from_logits(
    STUDENT_LOGITS, TEACHER_LOGITS, REFERENCE_LOGITS, RESPONSE, method
  )
  known = np.ones(RESPONSE.shape, bool)
  known[0] = False
  scores = {**evidence.scores, 'teacher': evidence.scores['teacher']._replace(known=known)}
  fresh = Evidence.of(evidence.rollout, scores, method.needs, step=0, key=evidence.key)
  got = through_the_pass(STUDENT_LOGITS, RESPONSE, targets, weigh(method)(fresh))
  same(got, paper(lambda of: by_token(of.mask & known, jensen_shannon(of))))
