"""StableOPD against its formula: own and golden text, the anchor, and where it ends without golden text."""

import jax.numpy as jnp
import numpy as np
import pytest
from evidence_worlds import (
  MASK,
  REFERENCE_LOGITS,
  RESPONSE,
  STUDENT_LOGITS,
  TEACHER_LOGITS,
  from_logits,
  ours,
  paper,
  same,
  stop,
  through_the_pass,
  weigh,
)

from opd_jax.claims import Converges, Nothing
from opd_jax.method import Evidence
from opd_jax.methods.opd import opd
from opd_jax.methods.stable_opd import VARIANTS, Between, stable_opd
from opd_jax.types import DATA

GOLDEN = np.isin(np.arange(len(MASK)), (0, 5))[:, None] & MASK
OWN = MASK & ~GOLDEN


def formula(*, weight=1.0, beta=0.1, own=OWN, golden=GOLDEN):
  def loss(of):
    anchor = (jnp.exp(of.P) * (of.P - of.R)).sum(-1)
    distilled = jnp.where(own, -stop(of.q - of.p) * of.p + beta * anchor, 0).sum() / own.sum()
    return distilled + weight * jnp.where(golden, -of.p, 0).sum() / max(golden.sum(), 1)

  return loss


def with_golden(method):
  """Evidence in which a data set gave two rows; nobody knows how likely they were when they were written."""
  logits = STUDENT_LOGITS, TEACHER_LOGITS, REFERENCE_LOGITS
  evidence, targets = from_logits(*logits, RESPONSE, method)
  rollout = evidence.rollout
  unknown = np.where(GOLDEN, np.nan, rollout.logp)
  rollout = rollout._replace(
    writer=np.where(GOLDEN, DATA, rollout.writer), logp=unknown, behaviour_logp=unknown
  )
  return evidence._replace(rollout=rollout), targets


CASES = {
  'published': ({}, {}),
  'golden only': (VARIANTS['golden only'], {'beta': 0.0}),
  'other weights': ({'weight': 0.3, 'beta': 2.0}, {'weight': 0.3, 'beta': 2.0}),
}


@pytest.mark.parametrize('settings, papers', CASES.values(), ids=CASES)
def test_it_is_the_published_formula(settings, papers):
  method = stable_opd(**settings)
  evidence, targets = with_golden(method)
  got = through_the_pass(STUDENT_LOGITS, RESPONSE, targets, weigh(method)(evidence))
  same(got, paper(formula(**papers)))


def test_without_golden_rows_it_is_opd_with_an_anchor():
  want = paper(formula(own=MASK, golden=MASK & False))
  same(ours(stable_opd(**VARIANTS['reference only'])), want)
  plain = ours(stable_opd(golden=0.0, beta=0.0))
  np.testing.assert_allclose(plain[1], ours(opd())[1], rtol=0, atol=1e-15)


def test_golden_text_is_taught_where_no_judge_has_an_opinion():
  method = stable_opd()
  evidence, _ = with_golden(method)
  blank = {
    name: scores if name == 'student' else scores._replace(known=jnp.zeros_like(scores.known))
    for name, scores in evidence.scores.items()
  }
  blind = Evidence.of(evidence.rollout, blank, method.needs, step=evidence.step, key=evidence.key)
  gap, taught, anchor = (np.asarray(term.coefficient) for term in weigh(method)(blind))
  np.testing.assert_allclose(taught, GOLDEN / GOLDEN.sum(), rtol=1e-12)
  assert not gap.any() and not anchor.any()


def test_it_claims_what_lies_between_teacher_and_reference_only_without_golden_text():
  assert isinstance(stable_opd().claim, Nothing)
  assert stable_opd(golden=0.0).claim == Converges(optimum=Between(beta=0.1))
  assert stable_opd(golden=0.0, beta=0.0).claim == Converges()
  assert stable_opd(**VARIANTS['golden only']).needs.judges.keys() == {'teacher'}


def test_negative_weights_are_refused():
  with pytest.raises(ValueError, match='must not be negative'):
    stable_opd(beta=-0.1)
