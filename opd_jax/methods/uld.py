"""ULD, arXiv:2402.12030: sorted probabilities are compared, whatever tokens they are of."""

from opd_jax import rollouts
from opd_jax.claims import Nothing
from opd_jax.losses import chunks
from opd_jax.losses.divergences import TotalVariation
from opd_jax.losses.normalisers import per_token
from opd_jax.losses.rest_rules import Unclosed
from opd_jax.losses.supports import SameRank, Support
from opd_jax.losses.terms import DivergenceTerm
from opd_jax.method import Evidence, Method, WeightedTerms, required_by

VARIANTS = {}


def uld(*, k: int = 64) -> Method:
  r"""The distance of two sorted distributions: the shape of the teacher's is imitated, not its choice of tokens.

      loss = Σ_t Σ_{r ≤ k} |p_(r) - q_(r)| / tokens,      p_(1) ≥ p_(2) ≥ … the sorted probabilities

  arXiv:2402.12030, made for two vocabularies and meant to be added to a likelihood of the data. With a foreign judge t
  are the tokens with which a chunk begins, so that both models have read the same text; the paper compares the same
  positions of both responses. Departs: the student's own text, and the first k ranks; the paper takes all. On one
  vocabulary a control: whatever it reaches was learnt without the name of a token.

  Args:
    k: ranks that are compared.
  """
  support = Support(entries=SameRank(k), rest=Unclosed())
  term = DivergenceTerm(divergence=TotalVariation(), support=support)

  def weigh(evidence: Evidence) -> WeightedTerms:
    begins = evidence.mask & chunks.first(evidence.teacher.chunk)
    return (term(2.0 * per_token(begins)),)

  return Method(
    rollout=rollouts.student(),
    needs=required_by(term),
    weigh=weigh,
    claim=Nothing("any order of the teacher's probabilities is an optimum"),
    paper='arXiv:2402.12030',
  )
