"""Sequence-level knowledge distillation, arXiv:1606.07947."""

from opd_jax import rollouts
from opd_jax.losses import divergences, terms
from opd_jax.losses.normalisers import per_token
from opd_jax.losses.vocabulary import WeightedTerm
from opd_jax.method import Evidence, Method, WeightedTerms


def seqkd() -> Method:
  r"""Likelihood of text that the teacher wrote: no judge is asked at all.

      loss = -Σ_t log p(y_t) / tokens,      y ~ q

  arXiv:1606.07947. In expectation the gradient of forward KL at the *teacher's* prefixes.
  """

  def weigh(evidence: Evidence) -> WeightedTerms:
    return (WeightedTerm(terms.likelihood(), per_token(evidence.rollout.mask), {}),)

  return Method(
    rollout=rollouts.teacher(),
    weigh=weigh,
    descends=divergences.forward_kl(),
    paper='arXiv:1606.07947',
  )
