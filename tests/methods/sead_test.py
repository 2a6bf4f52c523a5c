"""SEAD against its formula in loops: three zones by two entropies, both KLs, and the fall of α."""

import jax
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
from jax import numpy as jnp

from opd_jax.methods.sead import VARIANTS, sead

PLACES = [tuple(place) for place in np.argwhere(MASK).tolist()]
TOKENS = len(PLACES)


def zones_of(of, open_part, unsure_part):
  entropy = lambda log: np.asarray(stop(-(jnp.exp(log) * log).sum(-1)))
  teacher, student = entropy(of.Q), entropy(of.P)
  wide = sorted(PLACES, key=lambda at: -teacher[at])[: int(np.ceil(open_part * TOKENS))]
  others = sorted((at for at in PLACES if at not in wide), key=lambda at: -student[at])
  return others[: int(np.ceil(unsure_part / (1 - open_part) * len(others)))], wide


def formula(alpha=0.8, towards_reverse=False, open_part=0.1, unsure_part=0.4):
  def loss(of):
    reverse = (jnp.exp(of.P) * (of.P - of.Q)).sum(-1)
    forward = (jnp.exp(of.Q) * (of.Q - of.P)).sum(-1)
    unsure, wide = zones_of(of, open_part, unsure_part)
    total = sum(reverse[at] for at in unsure)
    for at in wide:
      total += alpha * forward[at] + ((1 - alpha) * reverse[at] if towards_reverse else 0.0)
    return total / len(unsure + wide)

  return loss


def evidence_of(method):
  logits = STUDENT_LOGITS, TEACHER_LOGITS, REFERENCE_LOGITS
  return from_logits(*logits, RESPONSE, method)


def at_step(step, **settings):
  """Loss and gradient at a step that is counted in 64 bits: α is then made in float64."""
  evidence, targets = evidence_of(sead(**settings))
  terms = weigh(sead(**settings))(evidence._replace(step=jnp.int64(step)))
  return through_the_pass(STUDENT_LOGITS, RESPONSE, targets, terms)


CASES = {
  'published': ({}, {}),
  'towards reverse': (VARIANTS['towards reverse'], {'towards_reverse': True}),
  'other parts': ({'open_part': 0.3, 'unsure_part': 0.7}, {'open_part': 0.3, 'unsure_part': 0.7}),
}


@pytest.mark.parametrize('settings, papers', CASES.values(), ids=CASES)
def test_it_is_the_published_formula(settings, papers):
  same(at_step(0, **settings), paper(formula(**papers)))


@pytest.mark.parametrize('step, alpha', [(100, 0.4), (200, 0.0), (999, 0.0)])
def test_the_forward_kl_is_let_go_along_a_cosine(step, alpha):
  same(at_step(step), paper(formula(alpha)))


def test_the_random_zones_have_the_same_sizes_elsewhere():
  (evidence, _), found = evidence_of(sead()), set()
  sizes = lambda terms: [int((np.asarray(term.coefficient) > 0).sum()) for term in terms]
  own = sizes(weigh(sead())(evidence))
  program = weigh(sead(**VARIANTS['random zones']))
  for seed in range(4):
    terms = program(evidence._replace(key=jax.random.key(seed)))
    assert sizes(terms) == own
    found.add(np.asarray(terms[0].coefficient).tobytes())
  assert len(found) > 1


@pytest.mark.parametrize('settings', [{'open_part': 0.0}, {'unsure_part': 0.95}])
def test_numbers_without_meaning_are_refused(settings):
  with pytest.raises(ValueError, match='both parts must be above 0'):
    sead(**settings)


def test_zones_may_fill_the_whole_batch():
  assert np.isfinite(ours(sead(open_part=0.8, unsure_part=0.2))[1]).all()
