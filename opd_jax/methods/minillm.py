"""MiniLLM, arXiv:2306.08543: sequence-level reverse KL by policy gradient, while the teacher helps to write."""

import jax.numpy as jnp
from jaxtyping import Float

from opd_jax import rollouts
from opd_jax.claims import Converges
from opd_jax.losses import advantages, weights
from opd_jax.losses.divergences import ReverseKL
from opd_jax.losses.normalisers import per_token
from opd_jax.losses.supports import FULL
from opd_jax.losses.terms import ClippedRatio, DivergenceTerm
from opd_jax.method import Evidence, Method, WeightedTerms, required_by
from opd_jax.types import AnyArray

VARIANTS = {
  'as printed': {'as_released': False},
  'no decomposition': {'decompose': False},
  'no length normalisation': {'normalise_length': False},
  'no mixing': {'mixed': False},
}


def minillm(
  *,
  decompose: bool = True,
  normalise_length: bool = True,
  mixed: bool = True,
  as_released: bool = True,
  clip: float = 0.2,
) -> Method:
  r"""A token answers for all the gaps behind it, and the gap at its own position has its exact gradient.

      r_t = log q(y_t) - log p(y_t),      R_t = Σ_{k≥t} r_k / (number of k),      w_t = p(y_t) / behaviour(y_t)
      loss = Σ_t [ PPO( R_t, w_t ) + KL(p ‖ q)(x, y_<t) ] / tokens

  arXiv:2306.08543. Each token is drawn from 0.8 p + 0.2 q: the rule `guided.Mixture`, which the experiment binds; w
  corrects for it token by token, as the paper does. Default: the released code. There R_t holds r_t, whose gradient
  the second term has already, and is whitened over the batch; the KL is not weighed. As printed, R begins at t + 1, is
  not whitened, and the KL counts w_t. Departs: whitens tokens that count, where the code includes padding; learns no
  text of a pretraining corpus beside.

  Args:
    decompose: False leaves the KL of a position to the policy gradient.
    normalise_length: False sums the gaps behind a token.
    mixed: whether decoding rules may read the teacher while the student writes.
    as_released: False is the printed formula.
    clip: of w_t: at the first update already where the teacher helps to write.
  """
  single = DivergenceTerm(divergence=ReverseKL(), support=FULL)
  ratio = ClippedRatio(low=clip, high=clip)

  def returns(evidence: Evidence) -> Float[AnyArray, 'B R']:
    gap = advantages.log_ratio(evidence.teacher.logp, evidence.student.logp)
    counts = evidence.mask.astype(gap.dtype)
    from_here = lambda x: jnp.cumsum(x[:, ::-1], axis=1)[:, ::-1]
    total, many = from_here(counts * gap), from_here(counts)
    if decompose and not as_released:
      total, many = total - counts * gap, many - counts
    value = total / jnp.maximum(many, 1.0) if normalise_length else total
    return weights.whitened(value, evidence.mask) if as_released else value

  def weigh(evidence: Evidence) -> WeightedTerms:
    mean, behaviour = per_token(evidence.mask), evidence.rollout.behaviour_logp
    long = ratio(mean, advantage=returns(evidence), behaviour_logp=behaviour)
    if not decompose:
      return (long,)
    drawn = jnp.exp(jnp.where(evidence.mask, evidence.student.logp - behaviour, 0.0))
    return long, single(mean if as_released else mean * drawn)

  return Method(
    rollout=rollouts.student(beside='teacher' if mixed else None),
    needs=required_by(single),
    weigh=weigh,
    claim=Converges(),  # at the teacher every gap is zero, those behind a token too
    paper='arXiv:2306.08543',
  )
