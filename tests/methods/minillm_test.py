"""MiniLLM against its formula in loops: returns, weights of drawn tokens, whitening, and the printed form."""

import jax.numpy as jnp
import numpy as np
import pytest
from evidence_worlds import (
  MASK,
  REFERENCE_LOGITS,
  RESPONSE,
  STUDENT_LOGITS,
  TEACHER_LOGITS,
  by_token,
  from_logits,
  ours,
  paper,
  same,
  stop,
  through_the_pass,
  weigh,
)

from opd_jax.methods.minillm import VARIANTS, minillm
from opd_jax.methods.opd import opd

ALPHA = 0.2


def returns(gap, *, first=0, normalised=True):
  """Of every token that counts: what lies at and behind it; `first` = 1 leaves out its own gap."""
  found = np.zeros(MASK.shape)
  for row, counts in enumerate(MASK):
    here = np.flatnonzero(counts)
    for number, column in enumerate(here):
      behind = gap[row, here[number + first :]]
      found[row, column] = behind.sum() / (max(len(behind), 1) if normalised else 1)
  return found


def whitened(value):
  chosen = value[MASK]
  return np.where(MASK, (value - chosen.mean()) / chosen.std(), 0.0)


def formula(*, behaviour=None, first=0, normalised=True, whiten=True, single=True, weighed=False):
  def loss(of):
    gap = np.asarray(stop(of.q - of.p))
    value = returns(gap, first=first, normalised=normalised)
    advantage = whitened(value) if whiten else value
    ratio = jnp.exp(of.p - (stop(of.p) if behaviour is None else behaviour))
    surrogate = -jnp.minimum(ratio * advantage, jnp.clip(ratio, 0.8, 1.2) * advantage)
    kl = (jnp.exp(of.P) * (of.P - of.Q)).sum(-1)
    return by_token(of.mask, surrogate + (kl * (stop(ratio) if weighed else 1.0) if single else 0))

  return loss


PRINTED = {'first': 1, 'whiten': False, 'weighed': True}
CASES = {
  'released': ({}, {}),
  'as printed': (VARIANTS['as printed'], PRINTED),
  'no length normalisation': (VARIANTS['no length normalisation'], {'normalised': False}),
  'printed without decomposition': (
    {'as_released': False, 'decompose': False},
    {'whiten': False, 'single': False},
  ),
}


@pytest.mark.parametrize('settings, papers', CASES.values(), ids=CASES)
def test_it_is_the_published_formula(settings, papers):
  same(ours(minillm(**settings)), paper(formula(**papers)))


DRAWN = {
  'released': ({}, {}),
  'as printed': (VARIANTS['as printed'], PRINTED),
  'no decomposition': (VARIANTS['no decomposition'], {'single': False}),
}


@pytest.mark.parametrize('settings, papers', DRAWN.values(), ids=DRAWN)
def test_a_token_of_the_mixture_is_weighed_by_how_much_likelier_the_student_finds_it(
  settings, papers
):
  logs = [x - np.log(np.exp(x).sum(-1, keepdims=True)) for x in (STUDENT_LOGITS, TEACHER_LOGITS)]
  p, q = (np.exp(np.take_along_axis(x, RESPONSE[..., None], -1)[..., 0]) for x in logs)
  behaviour = np.log((1 - ALPHA) * p + ALPHA * q)
  weight = (p / np.exp(behaviour))[MASK]
  assert weight.min() < 0.8 and weight.max() > 1.2  # both bounds are at work
  method = minillm(**settings)
  logits = STUDENT_LOGITS, TEACHER_LOGITS, REFERENCE_LOGITS
  evidence, targets = from_logits(*logits, RESPONSE, method)
  rollout = evidence.rollout._replace(behaviour_logp=behaviour)
  terms = weigh(method)(evidence._replace(rollout=rollout))
  got = through_the_pass(STUDENT_LOGITS, RESPONSE, targets, terms)
  same(got, paper(formula(behaviour=behaviour, **papers)))


def test_only_the_mixing_variant_writes_beside_the_teacher():
  assert minillm().rollout.beside == 'teacher' and minillm().rollout.student == 1.0
  assert minillm(**VARIANTS['no mixing']).rollout.beside is None


def test_a_response_of_one_token_that_answers_for_itself_is_opd():
  """Row 1 of the batch has one token: without decomposition its printed return is its own gap."""
  gradient = ours(minillm(as_released=False, decompose=False))[1]
  np.testing.assert_allclose(gradient[1], ours(opd())[1][1], rtol=0, atol=1e-15)
