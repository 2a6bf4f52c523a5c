"""Sequence-level knowledge distillation, arXiv:1606.07947."""

from opd_jax import rollouts
from opd_jax.claims import Unbiased
from opd_jax.losses.divergences import ForwardKL
from opd_jax.losses.normalisers import per_token
from opd_jax.losses.terms import Likelihood
from opd_jax.method import Evidence, Method, WeightedTerms

VARIANTS = {}


def seqkd() -> Method:
  r"""Likelihood of text that the teacher wrote: no judge is asked at all.

      loss = -Σ_t log p(y_t) / tokens,      y ~ q

  arXiv:1606.07947. In expectation the gradient of forward KL at the *teacher's* prefixes.
  """

  def weigh(evidence: Evidence) -> WeightedTerms:
    return (Likelihood()(per_token(evidence.rollout.mask)),)

  return Method(
    rollout=rollouts.teacher(),
    weigh=weigh,
    claim=Unbiased(divergence=ForwardKL()),
    paper='arXiv:1606.07947',
  )
