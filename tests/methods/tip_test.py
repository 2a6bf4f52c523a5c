"""TIP against its formula in loops: both parts of the score, their scale, and the half that is kept."""

import jax
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
  weigh,
)
from jax import numpy as jnp

from opd_jax.methods.tip import VARIANTS, tip

PLACES = [tuple(place) for place in np.argwhere(MASK).tolist()]
BY = {
  'either': lambda h, e: h + e - h * e,
  'entropy': lambda h, e: h,
  'divergence': lambda h, e: e,
}


def unit(values):
  return [(value - min(values)) / (max(values) - min(values)) for value in values]


def reverse(of):
  return (jnp.exp(of.P) * (of.P - of.Q)).sum(-1)


def kept(of, by, fraction):
  P, gap = np.asarray(stop(of.P)), np.asarray(stop(reverse(of)))
  entropies = unit([-(np.exp(P[at]) * P[at]).sum() for at in PLACES])
  parts = zip(entropies, unit([gap[at] for at in PLACES]), strict=True)
  score = [BY[by](*part) for part in parts]
  order = sorted(range(len(PLACES)), key=lambda n: -score[n])
  return [PLACES[n] for n in order[: int(np.ceil(fraction * len(PLACES)))]]


@pytest.mark.parametrize('fraction', [0.5, 0.1])
@pytest.mark.parametrize('by', BY)
def test_it_is_the_published_formula(by, fraction):
  def formula(of):
    places = kept(of, by, fraction)
    return sum(reverse(of)[at] for at in places) / len(places)

  same(ours(tip(by=by, fraction=fraction)), paper(formula))


def test_with_every_token_it_is_the_reverse_kl():
  same(ours(tip(fraction=1.0)), paper(lambda of: by_token(of.mask, reverse(of))))


def test_the_random_control_spends_the_same_budget_elsewhere():
  method, budget, found = tip(**VARIANTS['random']), int(np.ceil(MASK.sum() / 2)), set()
  logits = STUDENT_LOGITS, TEACHER_LOGITS, REFERENCE_LOGITS
  evidence, _ = from_logits(*logits, RESPONSE, method)
  program = weigh(method)
  for seed in range(4):
    coefficient = np.asarray(program(evidence._replace(key=jax.random.key(seed)))[0].coefficient)
    assert not coefficient[~MASK].any() and (coefficient != 0).sum() == budget
    np.testing.assert_allclose(coefficient[coefficient != 0], 1 / budget, rtol=1e-12)
    found.add(coefficient.tobytes())
  assert len(found) > 1


@pytest.mark.parametrize('settings', [{'by': 'novelty'}, {'fraction': 0.0}])
def test_numbers_without_meaning_are_refused(settings):
  with pytest.raises(ValueError, match='by is one of either'):
    tip(**settings)
