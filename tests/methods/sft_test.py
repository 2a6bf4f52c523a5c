"""Likelihood, of text that a data set holds."""

from evidence_worlds import by_token, ours, paper, same

from opd_jax.method_reads import judges_read
from opd_jax.methods.sft import sft


def test_it_is_the_likelihood_of_what_counts():
  same(ours(sft()), paper(lambda of: by_token(of.mask, -of.p)))


def test_it_asks_no_judge():
  assert not judges_read(sft()) and sft().rollout.data == 1.0
