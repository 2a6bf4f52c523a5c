"""AOPD against its formula, with every gate and both ways to close the support, and its two ends."""

import jax.numpy as jnp
import numpy as np
import pytest
from evidence_worlds import (
  MASK,
  STUDENT_LOGITS,
  TEACHER_LOGITS,
  K,
  V,
  by_sequence,
  ours,
  paper,
  same,
  stop,
  top_kl,
)

from opd_jax.losses.rest_rules import TeacherOnly
from opd_jax.methods.aopd import VARIANTS, Below, Zero, aopd


def below(delta):
  return lambda of: jnp.exp(of.q) - jnp.exp(of.p) <= delta


CASES = {
  'below': ({}, below(0.0), True),
  'below 0.1': ({'intervene': Below(delta=0.1)}, below(0.1), True),
  'teacher only': ({'rest': TeacherOnly()}, below(0.0), False),
  'zero gate': (VARIANTS['zero gate'], lambda of: abs(of.q - of.p) <= 1e-6, True),
  'wide zero gate': ({'intervene': Zero(tolerance=0.3)}, lambda of: abs(of.q - of.p) <= 0.3, True),
  'accuracy filter': (
    VARIANTS['accuracy filter'],
    lambda of: (of.q <= of.p) & (of.reward <= 0)[:, None],
    True,
  ),
}


@pytest.mark.parametrize('settings, gate, both', CASES.values(), ids=CASES)
def test_it_is_the_published_formula(settings, gate, both):
  def formula(of):
    sampled = -stop(of.q - of.p) * of.p
    return by_sequence(of.mask, jnp.where(stop(gate(of)), top_kl(of, both=both), sampled))

  same(ours(aopd(k=K, **settings)), paper(formula))


def test_a_gate_that_never_opens_leaves_opd_per_sequence():
  never = ours(aopd(k=K, intervene=Below(delta=-1.0 - 1e-6)))
  same(never, paper(lambda of: by_sequence(of.mask, -stop(of.q - of.p) * of.p)))


def test_a_gate_that_never_closes_leaves_the_forward_kl_on_the_top_k():
  always = Below(delta=1.0)
  same(ours(aopd(k=K, intervene=always)), paper(lambda of: by_sequence(of.mask, top_kl(of))))
  gradient = ours(aopd(k=V, intervene=always))[1]  # on every entry: p - q
  rows = MASK.any(axis=1).sum()
  counts = MASK / np.maximum(MASK.sum(axis=1, keepdims=True), 1) / rows
  p, q = (np.exp(x) / np.exp(x).sum(-1, keepdims=True) for x in (STUDENT_LOGITS, TEACHER_LOGITS))
  np.testing.assert_allclose(gradient, (p - q) * counts[..., None], rtol=0, atol=1e-13)


def test_a_student_that_is_its_teacher_stays_where_both_sides_are_closed_alike():
  for settings, _, both in CASES.values():
    gradient = np.asarray(ours(aopd(k=K, **settings), student=TEACHER_LOGITS)[1])
    assert (np.abs(gradient).max() <= 1e-15) == both
