"""SDPO, arXiv:2601.20802: the student is its own teacher, which has seen a success or what a verifier said."""

import jax.numpy as jnp

from opd_jax import rollouts
from opd_jax.claims import Nothing
from opd_jax.losses import weights
from opd_jax.losses.divergences import Divergence, JensenShannon, ReverseKL
from opd_jax.losses.normalisers import per_token
from opd_jax.losses.rest_rules import Tail
from opd_jax.losses.supports import StudentTopK, Support
from opd_jax.losses.terms import DivergenceTerm, TruncatedRatio
from opd_jax.method import Evidence, Method, WeightedTerms, required_by

VARIANTS = {'rich feedback': {'divergence': ReverseKL()}}


def sdpo(
  *, divergence: Divergence = JensenShannon(), k: int = 20, max_ratio: float = 2.0
) -> Method:
  r"""A divergence on the student's best k and the rest, to the student that has seen how a question can be answered.

      loss = Σ_t ω_t ρ_t D(p_t, q_t) / tokens,    ρ = min( p(y) / p_old(y), 2 ),   ω = min( p_old(y) / behaviour(y), 2 )

  arXiv:2601.20802 and its code: JSD on the best 100 with scalar rewards, reverse KL on the best 20 with rich feedback.
  Both ratios are without a gradient, and none is ever made zero; ρ is of the present student, so it acts from the
  second update of a batch on. A response of which the context shows nothing leaves numerator and denominator. No
  reward is in the loss: it only chooses what is shown, see `contexts.siblings`. MOPD (arXiv:2605.12652) is the same
  loss with two successes and a failure in the prompt.

  Args:
    divergence: D; the rest of either side is one more entry.
    k: entries.
    max_ratio: of ρ and of ω.
  """
  term = DivergenceTerm(
    divergence=divergence,
    support=Support(entries=StudentTopK(k), rest=Tail()),
    ratio=TruncatedRatio(max=max_ratio),
  )

  def weigh(evidence: Evidence) -> WeightedTerms:
    mask, old = evidence.mask, evidence.student.logp
    behaviour = jnp.where(mask, evidence.rollout.behaviour_logp, 0.0)
    engine = weights.truncated_importance(old, behaviour, max=max_ratio)
    return (term(per_token(mask) * engine, behaviour_logp=old),)

  return Method(
    rollout=rollouts.student(),
    needs=required_by(term),
    weigh=weigh,
    claim=Nothing('entries outside the best k are compared as one'),
    paper='arXiv:2601.20802',
  )
