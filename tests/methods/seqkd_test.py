"""Likelihood, of text that the teacher wrote."""

from evidence_worlds import by_token, ours, paper, same

from opd_jax.method_reads import judges_read
from opd_jax.methods.seqkd import seqkd


def test_it_is_the_likelihood_of_what_counts():
  same(ours(seqkd()), paper(lambda of: by_token(of.mask, -of.p)))


def test_it_asks_no_judge():
  assert not judges_read(seqkd()) and seqkd().rollout.teacher == 1.0
