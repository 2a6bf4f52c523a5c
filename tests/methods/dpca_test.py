"""DPCA against its formula, chunk by chunk, with the examples of its paper."""

import jax.numpy as jnp
import numpy as np
import pytest
from chunk_worlds import CHUNKS, members, with_chunks
from evidence_worlds import MASK, ours, weigh

from opd_jax.methods.dpca import dpca
from opd_jax.methods.opd import opd


def published(log_p, log_q, credit):
  """A of every token, one chunk after the other."""
  advantage = np.zeros(MASK.shape)
  for where in members():
    p, q = log_p[where], log_q[where]
    log_ratio = (
      q.sum() / p.sum() * p if credit == 'proportional' else p + (q.sum() - p.sum()) / len(p)
    )
    advantage[where] = np.clip(log_ratio - p, -10, 10)
  return advantage


@pytest.mark.parametrize('credit', ['proportional', 'even'])
def test_it_is_the_published_formula(credit):
  method = dpca(credit=credit)
  evidence, _ = with_chunks(method)
  (term,) = weigh(method)(evidence)
  log_p, log_q = (np.asarray(evidence.judge(name).logp) for name in ('student', 'teacher'))
  want = published(log_p, log_q, credit)
  np.testing.assert_allclose(term.inputs['advantage'], want, rtol=0, atol=1e-12)
  counted = MASK & (CHUNKS >= 0)
  np.testing.assert_allclose(term.coefficient, counted / counted.sum(), rtol=0, atol=1e-15)


@pytest.mark.parametrize('credit', ['proportional', 'even'])
def test_the_shares_of_a_chunk_are_its_log_ratio(credit):
  method = dpca(credit=credit, bound=1e9)
  evidence, _ = with_chunks(method)
  (term,) = weigh(method)(evidence)
  gap = np.asarray(evidence.teacher.logp - evidence.student.logp)
  for where in members():
    total = np.asarray(term.inputs['advantage'])[where].sum()
    np.testing.assert_allclose(total, gap[where].sum(), rtol=0, atol=1e-12)


def test_with_one_tokenizer_it_is_opd():
  got, want = ours(dpca(bound=1e9)), ours(opd())
  np.testing.assert_allclose(got[1], want[1], rtol=0, atol=1e-12)


@pytest.mark.parametrize(
  'student, teacher, want',
  [
    ([-9.21], -7.12, [2.09]),
    ([-6.93, -7.65], -15.91, [-0.63, -0.70]),
    ([0.0, 0.0], -4.0, [-2, -2]),
  ],
)
def test_the_examples_of_the_paper(student, teacher, want):
  """A chunk of one token, one of two, and one of which the student is certain."""
  method, size = dpca(), len(student)
  evidence, _ = with_chunks(method)
  width = MASK.shape[1]
  rows = lambda values: np.tile(np.pad(np.array(values, float), (0, width - len(values))), (8, 1))
  chunk = np.full(MASK.shape, -1)
  chunk[:, :size] = 0
  scores = {
    'student': evidence.scores['student']._replace(logp=jnp.asarray(rows(student))),
    'teacher': evidence.scores['teacher']._replace(logp=jnp.asarray(rows([teacher])), chunk=chunk),
  }
  mask = (np.arange(MASK.shape[1]) < size) & np.ones(MASK.shape, bool)
  evidence = evidence._replace(
    scores=scores, mask=mask, rollout=evidence.rollout._replace(mask=mask)
  )
  (term,) = weigh(method)(evidence)
  np.testing.assert_allclose(term.inputs['advantage'][0, :size], want, rtol=0, atol=5e-3)


def test_settings_without_meaning_are_refused():
  with pytest.raises(ValueError, match="credit is 'proportional' or 'even'"):
    dpca(credit='odd')
