"""Supervised fine-tuning: what warms a student up, or makes a teacher of it."""

from opd_jax import rollouts
from opd_jax.claims import Unbiased
from opd_jax.losses.divergences import ForwardKL
from opd_jax.losses.normalisers import per_token
from opd_jax.losses.terms import Likelihood
from opd_jax.method import Evidence, Method, WeightedTerms

VARIANTS = {}


def sft() -> Method:
  r"""Likelihood of a data set's responses; no judge is asked.

      loss = -Σ_t log p(y_t) / tokens,      y from the data set

  Every method of the papers begins here. The prompt has no loss; the token that ends a response has one.
  """

  def weigh(evidence: Evidence) -> WeightedTerms:
    return (Likelihood()(per_token(evidence.rollout.mask)),)

  return Method(
    rollout=rollouts.dataset(),
    weigh=weigh,
    claim=Unbiased(divergence=ForwardKL()),
    paper='common practice: no paper',
  )
