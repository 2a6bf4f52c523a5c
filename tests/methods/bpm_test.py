"""BPM against its formula: the teacher's best entries, and one more for the rest; over all tokens of the batch."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from chunk_worlds import CHUNKS, with_chunks
from evidence_worlds import MASK, RESPONSE, K, V, ours, paper, same, weigh

from opd_jax.losses.divergences import ForwardKL
from opd_jax.methods.bpm import bpm
from opd_jax.methods.gkd import gkd


def published(of, *, count=lambda mask: mask):
  best, ids = jax.lax.top_k(of.Q, K)
  own = jnp.take_along_axis(of.P, ids, -1)
  rest = lambda log: jnp.log1p(-jnp.exp(log).sum(-1, keepdims=True))
  p, q = (jnp.concatenate([log, rest(log)], -1) for log in (own, best))
  return jnp.where(count(of.mask), (jnp.exp(q) * (q - p)).sum(-1), 0.0).sum() / of.mask.sum()


def test_it_is_the_published_formula():
  same(ours(bpm(k=K)), paper(published))


def test_with_every_entry_and_one_tokenizer_it_is_gkd_on_the_students_text():
  same(ours(bpm(k=V)), ours(gkd(divergence=ForwardKL(), student_fraction=1.0)))


def test_skipped_tokens_are_not_compared_and_still_divide():
  skip = tuple(range(V // 2))
  keep = ~np.isin(RESPONSE, skip)
  got = ours(bpm(k=K, skip=skip))
  same(got, paper(lambda of: published(of, count=lambda mask: mask & keep)))
  assert (MASK & keep).any() and (MASK & ~keep).any()


def test_what_no_chunk_holds_is_not_compared_and_still_divides():
  method = bpm(k=K)
  evidence, _ = with_chunks(method)
  (term,) = weigh(method)(evidence)
  want = (MASK & (CHUNKS >= 0)) / MASK.sum()
  np.testing.assert_allclose(term.coefficient, want, rtol=0, atol=1e-15)


def test_no_entries_are_refused():
  with pytest.raises(ValueError, match='at least one entry'):
    bpm(k=0)
