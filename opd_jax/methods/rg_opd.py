"""RG-OPD, arXiv:2607.04037: responses on which the teacher and the outcome agree."""

import jax.numpy as jnp
from jaxtyping import Bool

from opd_jax import rollouts
from opd_jax.claims import Nothing
from opd_jax.losses import selectors, weights
from opd_jax.losses.divergences import ReverseKL
from opd_jax.losses.normalisers import filtered
from opd_jax.losses.rest_rules import Renormalised, RestRule, Tail
from opd_jax.losses.supports import StudentTopK, Support
from opd_jax.losses.terms import DivergenceTerm
from opd_jax.method import Evidence, Method, WeightedTerms, required_by
from opd_jax.types import AnyArray

VARIANTS = {
  'no tail': {'rest': Renormalised()},
  'random': {'at_random': True},
}


def rg_opd(
  *, k: int = 50, margin: float = 0.0, rest: RestRule = Tail(), at_random: bool = False
) -> Method:
  r"""Reverse KL on those responses that the teacher prefers as the outcome does.

      kept:  a_i > 0 and L_T > L_S + δ,   or   a_i ≤ 0 and L_T < L_S - δ;      loss = Σ_kept KL(p ‖ q) / tokens kept

  arXiv:2607.04037, δ = 0; a is the group's advantage of the outcome, L the log-probability of the whole response, and
  the KL is on the student's top 50 and one entry for the rest. A dropped response leaves numerator and denominator. A
  response that nobody verified has no a, and is dropped.

  Args:
    k: entries of the student that are compared.
    margin: δ, in nats.
    rest: how the top k is closed.
    at_random: the control: as many responses, drawn.
  """
  if margin < 0:
    raise ValueError(f'rg_opd: margin must not be negative, got {margin}.')
  term = DivergenceTerm(divergence=ReverseKL(), support=Support(entries=StudentTopK(k), rest=rest))

  def kept(evidence: Evidence) -> Bool[AnyArray, ' B']:
    rollout, mask = evidence.rollout, evidence.mask
    whole = lambda logp: jnp.where(mask, logp, 0.0).sum(axis=1)
    gap = whole(evidence.teacher.logp) - whole(evidence.student.logp)
    better = weights.group_advantage(rollout.reward, rollout.prompt.group) > 0
    agree = jnp.where(better, gap > margin, gap < -margin)
    there = jnp.asarray(mask).any(axis=1)
    keep = there & ~weights.unknown(rollout.reward) & agree
    return selectors.drawn_like(evidence.key, keep[None], there[None])[0] if at_random else keep

  def weigh(evidence: Evidence) -> WeightedTerms:
    return (term(filtered(evidence.mask, kept(evidence))),)

  return Method(
    rollout=rollouts.student(),
    needs=required_by(term),
    weigh=weigh,
    claim=Nothing('responses on which teacher and outcome disagree are dropped'),
    paper='arXiv:2607.04037',
  )
