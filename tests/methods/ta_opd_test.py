"""TA-OPD against its formula in loops: three scores, their norms, the budget, and what is left for every response."""

import jax
import numpy as np
import pytest
from evidence_worlds import (
  MASK,
  REFERENCE_LOGITS,
  RESPONSE,
  STUDENT_LOGITS,
  TEACHER_LOGITS,
  K,
  from_logits,
  ours,
  paper,
  same,
  stop,
  weigh,
)

from opd_jax.methods.opd import opd
from opd_jax.methods.ta_opd import VARIANTS, ta_opd

PLACES = [tuple(place) for place in np.argwhere(MASK).tolist()]
BY = {
  'teachable': lambda h, d, c: d * c,
  'entropy': lambda h, d, c: h,
  'divergence': lambda h, d, c: d,
  'compatible': lambda h, d, c: c,
  'tip': lambda h, d, c: h + d - h * d,
  'soft or': lambda h, d, c: h + d * c - h * d * c,
}


def norm(values):
  """Between the batch's quantiles 0.05 and 0.95, held to [0, 1]."""
  low, high = np.quantile(values, [0.05, 0.95])
  return [min(max((value - low) / (high - low), 0.0), 1.0) for value in values]


def kept(of, by, fraction):
  """The places that are learnt from, by the paper's rule."""
  P, Q = np.asarray(stop(of.P)), np.asarray(stop(of.Q))
  entropies, divergences, masses = [], [], []
  for place in PLACES:
    p, q = np.exp(P[place]), np.exp(Q[place])
    student, teacher = (np.argsort(-x)[:K] for x in (p, q))
    union = sorted({*student.tolist(), *teacher.tolist()})
    left, right = p[union] / p[union].sum(), q[union] / q[union].sum()
    entropies.append(-(p * np.log(p)).sum())
    divergences.append((right * np.log(right / left)).sum())
    masses.append(q[student].sum())
  parts = [*zip(norm(entropies), norm(divergences), norm(masses), strict=True)]
  score = [BY[by](*part) for part in parts]
  spare = [BY['soft or'](*part) for part in parts]
  order = sorted(range(len(PLACES)), key=lambda n: (-score[n], n))
  chosen = {PLACES[n] for n in order[: int(np.ceil(fraction * len(PLACES)))]}
  for row in np.flatnonzero(MASK.any(axis=1)):
    mine = [n for n, place in enumerate(PLACES) if place[0] == row]
    if not chosen & {PLACES[n] for n in mine}:
      chosen.add(PLACES[min(mine, key=lambda n: (-spare[n], n))])
  return chosen


@pytest.mark.parametrize('fraction', [0.05, 0.5])
@pytest.mark.parametrize('by', BY)
def test_it_is_the_published_formula(by, fraction):
  def formula(of):
    places = kept(of, by, fraction)
    return -sum(stop(of.q - of.p)[place] * of.p[place] for place in places) / len(places)

  same(ours(ta_opd(by=by, fraction=fraction, k=K)), paper(formula))


def test_with_every_token_it_is_opd():
  np.testing.assert_allclose(ours(ta_opd(fraction=1.0, k=K))[1], ours(opd())[1], rtol=0, atol=1e-15)


def test_the_random_control_spends_the_same_budget_elsewhere():
  """As many of the batch's tokens, and one of every response that has none among them."""
  method = ta_opd(fraction=0.5, k=K, **VARIANTS['random'])
  logits = STUDENT_LOGITS, TEACHER_LOGITS, REFERENCE_LOGITS
  evidence, _ = from_logits(*logits, RESPONSE, method)
  gap = np.asarray(evidence.teacher.logp - evidence.student.logp)
  budget, program, found = -(-len(PLACES) // 2), weigh(method), set()
  for seed in range(6):
    coefficient = program(evidence._replace(key=jax.random.key(seed)))[0].coefficient
    chosen = np.asarray(coefficient) != 0
    np.testing.assert_allclose(coefficient, chosen / chosen.sum() * gap, rtol=1e-12)
    assert not chosen[~MASK].any() and chosen.any(axis=1)[MASK.any(axis=1)].all()
    alone = (chosen.sum(axis=1) == 1).sum()
    assert budget <= chosen.sum() <= budget + alone
    found.add(chosen.tobytes())
  assert len(found) == 6


def test_a_selector_that_nobody_knows_is_refused():
  with pytest.raises(ValueError, match='by is one of teachable'):
    ta_opd(by='novelty')
