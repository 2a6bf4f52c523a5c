"""LGR against its formula on forks made by hand, and the cases in which it is OPD."""

import jax.numpy as jnp
import numpy as np
import pytest
from evidence_worlds import MASK, RESPONSE, STUDENT_LOGITS, TEACHER_LOGITS, same, with_forks

from opd_jax.forks import Forks
from opd_jax.methods.lgr import lgr
from opd_jax.types import TEACHER

ROW, AT, K = (0, 3), (2, 1), 3  # two points, each with its candidates


def coefficients(gamma: float, first, **settings):
  size = len(first)
  forks = Forks(
    row=np.repeat(ROW, K).astype(np.int32),
    at=np.repeat(AT, K).astype(np.int32),
    first=np.array(first, np.int32),
    writer=np.full(size, TEACHER, np.int32),
  )
  method = lgr(gamma=gamma, k=K, **settings)
  evidence = with_forks(method, forks, length=1)
  return evidence, np.asarray(method.weigh(evidence)[0].coefficient)


def confidence(row: int, at: int) -> float:
  """The teacher's largest probability behind a token."""
  logits = np.asarray(TEACHER_LOGITS)[row, at + 1]
  return float((np.exp(logits - logits.max()) / np.exp(logits - logits.max()).sum()).max())


@pytest.mark.parametrize('gamma', [1.0, 0.3, -1.0])
def test_it_is_the_published_formula_with_the_written_token_among_its_rivals(gamma):
  written = [int(RESPONSE[row, at]) for row, at in zip(ROW, AT, strict=True)]
  others = [token for token in range(11) if token not in written]
  first = [written[0], *others[:2], *others[2:5]]  # the second point's own token is no candidate
  evidence, got = coefficients(gamma, first)
  tokens, rows = MASK.sum(), len(MASK)
  gap = np.asarray(evidence.teacher.logp - evidence.student.logp)
  want = np.where(MASK, gap[:rows, : MASK.shape[1]] / tokens, 0.0)
  for point, (row, at) in enumerate(zip(ROW, AT, strict=True)):
    rivals = [
      float(np.exp(evidence.teacher.top_k.logp[rows + point * K + each, at + 1, 0]))
      for each in range(K)
    ]
    mine = confidence(row, at)
    group = [mine, *rivals[1:]] if point == 0 else [*rivals, mine]  # one number for one prefix
    want[row, at] += gamma * (mine - np.mean(group)) / (np.std(group) + 1e-6) / tokens
  np.testing.assert_allclose(got[:rows, : MASK.shape[1]], want, rtol=0, atol=1e-12)
  assert not got[rows:].any()


def test_it_looks_ahead_at_the_most_uncertain_tokens_only():
  method = lgr(k=K, points=2, threshold=0.2)
  evidence, _ = coefficients(1.0, [0] * 6)
  assert method.forks is not None
  plan = method.forks.plan(evidence._replace(forks=None))
  entropy = np.where(MASK, np.asarray(evidence.student.entropy)[: len(MASK), : MASK.shape[1]], -1.0)
  for row in range(len(MASK)):
    mine = np.asarray(plan.row).reshape(-1, 2, K)[row, :, 0]
    at = np.asarray(plan.at).reshape(-1, 2, K)[row, :, 0]
    wanted = [int(each) for each in np.argsort(-entropy[row])[:2] if entropy[row, each] > 0.2]
    assert [int(a) for a, r in zip(at, mine, strict=True) if r >= 0] == wanted
  likeliest = np.asarray(evidence.student.top_k.ids)
  np.testing.assert_array_equal(
    np.asarray(plan.first).reshape(-1, 2, K)[0, 0], likeliest[0, int(plan.at[0])]
  )


def test_without_lookahead_it_is_opd():
  from evidence_worlds import ours

  from opd_jax.methods.opd import opd

  same(ours(lgr(gamma=0.0)), ours(opd()))
  assert lgr(gamma=0.0).forks is None


def test_what_makes_no_sense_is_refused():
  with pytest.raises(ValueError, match='k must be at least 2'):
    lgr(k=1)
  assert jnp.isfinite(STUDENT_LOGITS).all()


def test_rivals_that_are_alike_but_for_rounding_are_no_reward():
  """The written token among its candidates is measured in its row alone: two programs differ in the last digits."""
  written = [int(RESPONSE[row, at]) for row, at in zip(ROW, AT, strict=True)]
  first = [written[0], written[0], written[0], written[1], written[1], written[1]]
  _, got = coefficients(1.0, first)
  _, plain = coefficients(0.0, first)
  np.testing.assert_allclose(got[: len(MASK)], plain[: len(MASK)], rtol=0, atol=1e-9)
