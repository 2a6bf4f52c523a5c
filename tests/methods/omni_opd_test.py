"""OmniOPD against its formula on continuations made by hand; the similarity against a plain edit distance."""

import difflib

import jax.numpy as jnp
import numpy as np
import pytest
from evidence_worlds import MASK, RESPONSE, with_forks

from opd_jax.forks import Forks
from opd_jax.losses.edit_distance import similarity
from opd_jax.methods.omni_opd import omni_opd
from opd_jax.types import TEACHER

CHUNK, N = 3, 2
ROW, AT = (0, 5), (1, 0)


def distance(one: list[int], other: list[int]) -> int:
  """Edits that turn one text into another, by the textbook's table."""
  table = np.zeros((len(one) + 1, len(other) + 1), int)
  table[:, 0], table[0] = np.arange(len(one) + 1), np.arange(len(other) + 1)
  for i, a in enumerate(one, start=1):
    for j, b in enumerate(other, start=1):
      table[i, j] = min(table[i - 1, j] + 1, table[i, j - 1] + 1, table[i - 1, j - 1] + (a != b))
  return int(table[-1, -1])


def test_the_similarity_is_that_of_the_edit_distance():
  rng = np.random.RandomState(0)
  for _ in range(40):
    one, other = rng.randint(0, 3, (2, 6))
    n, m = rng.randint(0, 7, 2)
    got = float(similarity(jnp.asarray(one), jnp.asarray(other), jnp.int32(n), jnp.int32(m)))
    want = 1 - distance(one[:n].tolist(), other[:m].tolist()) / max(n, m, 1)
    assert abs(got - want) < 1e-12, difflib.ndiff(map(str, one[:n]), map(str, other[:m]))


@pytest.mark.parametrize('baseline', [False, True])
def test_it_is_the_published_formula(baseline):
  forks = Forks(
    row=np.repeat(ROW, N).astype(np.int32),
    at=np.repeat(AT, N).astype(np.int32),
    first=np.full(4, -1, np.int32),
    writer=np.full(4, TEACHER, np.int32),
  )
  method = omni_opd(anchors=1, chunk=CHUNK, continuations=N, alpha=0.7, beta=0.2, baseline=baseline)
  evidence = with_forks(method, forks, length=CHUNK)
  likelihood, stay = method.weigh(evidence)
  rows, width = MASK.shape
  tokens, logp = MASK.sum(), np.asarray(evidence.student.logp)
  want, inside, estimates = np.zeros(MASK.shape), np.zeros(MASK.shape, bool), []
  for point, (row, at) in enumerate(zip(ROW, AT, strict=True)):
    where = [t for t in range(at, min(at + CHUNK, width)) if MASK[row, t]]
    mine = RESPONSE[row, where].tolist()
    total = 0.0
    for each in range(N):
      number = rows + point * N + each
      theirs = np.asarray(evidence.rollout.response)[number, at : at + CHUNK].tolist()
      total += 1 - distance(mine, theirs) / max(len(mine), len(theirs))
    likely = np.exp(logp[row, where].mean())
    estimates.append((total + 0.7 * likely) / (N + 0.7))
    inside[row, where] = True
  for (row, at), each in zip(zip(ROW, AT, strict=True), estimates, strict=True):
    where = [t for t in range(at, min(at + CHUNK, width)) if MASK[row, t]]
    want[row, where] = each - (np.mean(estimates) if baseline else 0.0)
  np.testing.assert_allclose(
    np.asarray(likelihood.coefficient)[:rows, :width], want / tokens, rtol=0, atol=1e-12
  )
  np.testing.assert_allclose(
    np.asarray(stay.coefficient)[:rows, :width], 0.2 * (MASK & ~inside) / tokens, rtol=0, atol=1e-14
  )
  assert not np.asarray(likelihood.coefficient)[rows:].any()


def test_what_makes_no_sense_is_refused():
  with pytest.raises(ValueError, match='alpha above 0'):
    omni_opd(alpha=0.0)
