"""SDFT, arXiv:2601.19897: the student is its own teacher, which has seen a demonstration."""

import jax.numpy as jnp

from opd_jax import rollouts
from opd_jax.claims import Nothing, Unbiased
from opd_jax.losses import weights
from opd_jax.losses.divergences import Divergence, ForwardKL, ReverseKL
from opd_jax.losses.normalisers import per_sequence
from opd_jax.losses.supports import FULL, Support
from opd_jax.losses.terms import DivergenceTerm
from opd_jax.method import Evidence, Method, WeightedTerms, required_by

VARIANTS = {
  'as printed': {'divergence': ReverseKL()},
  'every token': {'skip': 0},
}


def sdft(
  *,
  divergence: Divergence = ForwardKL(),
  skip: int = 3,
  max_ratio: float = 2.0,
  support: Support = FULL,
) -> Method:
  r"""Forward KL on the student's own text to the student that has seen a demonstration; the first tokens do not count.

      loss = mean_i ρ_i mean_{t > 3} D(p_t, q_t),      ρ_i = mean_{t > 3} min( p(y_t) / behaviour(y_t), 2 )

  arXiv:2601.19897 and its code. The paper prints reverse KL; its author says that all results are of forward KL, the
  default of the code. ρ corrects for the sampler: one number for a response, without a gradient, 1 where sampler and
  trainer agree. The moving average of the student (rate 0.01) and the demonstration are settings of the judge.

  Args:
    divergence: D.
    skip: tokens at the beginning of a response that do not count.
    max_ratio: the most that ρ is at a token.
    support: where D is taken.
  """
  if skip < 0:
    raise ValueError(f'sdft: skip must not be negative, got {skip}.')
  term = DivergenceTerm(divergence=divergence, support=support)

  def weigh(evidence: Evidence) -> WeightedTerms:
    mask = evidence.mask & (jnp.arange(evidence.mask.shape[1]) >= skip)
    behaviour = jnp.where(mask, evidence.rollout.behaviour_logp, 0.0)
    ratio = weights.truncated_importance(evidence.student.logp, behaviour, max=max_ratio)
    mean = jnp.where(mask, ratio, 0.0).sum(axis=1) / jnp.maximum(mask.sum(axis=1), 1)
    return (term(per_sequence(mask) * mean[:, None]),)

  return Method(
    rollout=rollouts.student(),
    needs=required_by(term),
    weigh=weigh,
    claim=Nothing(
      'the first tokens are not learnt, or entries outside the support are not compared'
    )
    if skip or support != FULL
    else Unbiased(divergence=divergence),
    paper='arXiv:2601.19897',
  )
