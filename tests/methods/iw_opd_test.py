"""IW-OPD against its formula, its weights and their controls."""

import numpy as np
import pytest
from evidence_worlds import (
  MASK,
  RESPONSE,
  STUDENT_LOGITS,
  TEACHER_LOGITS,
  at_ratio_one,
  ours,
  paper,
  same,
)

from opd_jax.methods import iw_opd as weights
from opd_jax.methods.iw_opd import VARIANTS, iw_opd
from opd_jax.methods.opd import opd


def written_gap():
  """log q(y) - log p(y), in numpy."""
  log = lambda x: x - np.log(np.exp(x).sum(-1, keepdims=True))
  gap = log(TEACHER_LOGITS) - log(STUDENT_LOGITS)
  return np.take_along_axis(gap, RESPONSE[..., None], axis=-1)[..., 0]


def cumulative(gap, *, size=np.abs):
  """1 + ½ (1 - the part of the gap that lies before), token by token."""
  out = np.zeros(MASK.shape)
  for row, counts in enumerate(MASK):
    here = np.flatnonzero(counts)
    sizes = size(gap[row, here])
    for number, column in enumerate(here):
      out[row, column] = 1.5 - 0.5 * np.clip(sizes[:number].sum() / sizes.sum(), 0, 1)
  return out


def linear(gap):
  out = np.zeros(MASK.shape)
  for row, counts in enumerate(MASK):
    here = np.flatnonzero(counts)
    out[row, here] = 1.5 - 0.5 * np.arange(len(here)) / max(len(here), 1)
  return out


def part(*, front: bool):
  """1 on 0.3 of a response's tokens, rounded up."""
  out = np.zeros(MASK.shape)
  for row, counts in enumerate(MASK):
    here = np.flatnonzero(counts)
    chosen = -(-3 * len(here) // 10)
    out[row, here[:chosen] if front else here[len(here) - chosen :]] = 1
  return out


CASES = {
  'cumulative': ({}, cumulative),
  'signed': (VARIANTS['signed'], lambda gap: cumulative(gap, size=lambda x: x)),
  'linear': (VARIANTS['linear'], linear),
  'fixed prefix': (VARIANTS['fixed prefix'], lambda gap: 1 + 0.5 * part(front=True)),
  'mean one': (VARIANTS['mean one'], lambda gap: cumulative(gap) / cumulative(gap)[MASK].mean()),
  'first': (VARIANTS['first'], lambda gap: part(front=True)),
  'last': (VARIANTS['last'], lambda gap: part(front=False)),
}


@pytest.mark.parametrize('settings, weight', CASES.values(), ids=CASES)
def test_it_is_the_published_formula(settings, weight):
  want = paper(lambda of: at_ratio_one(of, weight(written_gap()) * (of.q - of.p)))
  same(ours(iw_opd(**settings)), want)


def test_without_gamma_it_is_opd():
  plain = ours(iw_opd(weight=weights.Cumulative(gamma=0.0)))
  np.testing.assert_allclose(plain[1], ours(opd())[1], rtol=0, atol=1e-14)


@pytest.mark.parametrize('settings', [each for each, _ in CASES.values()], ids=CASES)
def test_a_student_that_is_its_teacher_stays(settings):
  gradient = ours(iw_opd(**settings), student=TEACHER_LOGITS)[1]
  np.testing.assert_allclose(gradient, 0.0, rtol=0, atol=1e-15)
