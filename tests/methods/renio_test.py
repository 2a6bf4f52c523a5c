"""ReNIO against its formula in loops: the telling tokens of a response, its weight, and the entries that are held."""

import math

import jax
import numpy as np
import pytest
from evidence_worlds import (
  MASK,
  REFERENCE_LOGITS,
  RESPONSE,
  STUDENT_LOGITS,
  TEACHER_LOGITS,
  by_sequence,
  from_logits,
  ours,
  paper,
  same,
  stop,
  weigh,
)
from jax import numpy as jnp

from opd_jax.losses.divergences import ForwardKL
from opd_jax.methods.renio import VARIANTS, renio

WRITTEN = np.flatnonzero(MASK.any(axis=1))


def weights_of(size, threshold, bound, most):
  """w of every row, from log p - log q of the written tokens."""
  raw = {}
  for row in WRITTEN:
    telling = [min(x, bound) for x in size[row, MASK[row]] if x >= threshold]
    raw[row] = math.exp(sum(telling) / len(telling)) if telling else 1.0
  mean = sum(raw.values()) / len(raw) if most else 1.0
  weight = np.zeros((len(MASK), 1))
  for row, value in raw.items():
    weight[row] = min(value / mean, most or math.inf)
  return weight


def formula(threshold=1.0, bound=2.0, most=10.0, temperature=1.1, held=True):
  def loss(of):
    log_p, log_q = (jax.nn.log_softmax(log / temperature) for log in (of.P, of.Q))
    entries = jnp.exp(log_q) * (log_q - log_p)
    value = (jnp.clip(entries, 0.0, 0.05) if held else entries).sum(-1)
    pick = lambda log: np.take_along_axis(np.asarray(stop(log)), RESPONSE[..., None], -1)[..., 0]
    return by_sequence(
      of.mask, value * weights_of(pick(log_p) - pick(log_q), threshold, bound, most)
    )

  return loss


CASES = {
  'published': ({}, {}),
  'printed thresholds': (VARIANTS['printed thresholds'], {'threshold': 0.8, 'bound': 3.0}),
  'no threshold': (VARIANTS['no threshold'], {'threshold': -math.inf}),
  'no bound': (VARIANTS['no bound'], {'bound': math.inf}),
  'not normalised': (VARIANTS['not normalised'], {'most': None}),
  'whole entries': (VARIANTS['whole entries'], {'held': False}),
  'at most 1.2': ({'most': 1.2, 'temperature': 1.0}, {'most': 1.2, 'temperature': 1.0}),
}


@pytest.mark.parametrize('settings, papers', CASES.values(), ids=CASES)
def test_it_is_the_published_formula(settings, papers):
  same(ours(renio(**settings)), paper(formula(**papers)))


def test_where_no_token_is_telling_every_response_counts_alike():
  forward = lambda of: by_sequence(of.mask, (jnp.exp(of.Q) * (of.Q - of.P)).sum(-1))
  settings = {'threshold': 99.0, 'bound': 99.0, 'temperature': 1.0, 'divergence': ForwardKL()}
  same(ours(renio(**settings)), paper(forward))


def test_the_control_deals_the_same_weights_to_other_rows():
  logits = STUDENT_LOGITS, TEACHER_LOGITS, REFERENCE_LOGITS
  evidence, _ = from_logits(*logits, RESPONSE, renio())
  full = np.ones_like(MASK)
  evidence = evidence._replace(mask=full, rollout=evidence.rollout._replace(mask=full))
  own = np.asarray(weigh(renio())(evidence)[0].coefficient)[:, 0]
  program, found = weigh(renio(**VARIANTS['shuffled'])), set()
  for seed in range(4):
    dealt = np.asarray(program(evidence._replace(key=jax.random.key(seed)))[0].coefficient)[:, 0]
    np.testing.assert_allclose(np.sort(dealt), np.sort(own), rtol=1e-12)
    found.add(dealt.tobytes())
  assert len(found) > 1 and len(set(own.tolist())) > 4


@pytest.mark.parametrize('settings', [{'threshold': 3.0}, {'most': 0.5}])
def test_numbers_without_meaning_are_refused(settings):
  with pytest.raises(ValueError, match='threshold must be at most bound'):
    renio(**settings)
