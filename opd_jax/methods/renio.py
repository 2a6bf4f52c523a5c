"""ReNIO, arXiv:2606.23104: responses with tokens that the teacher finds unlikely count for more."""

import math

import jax.numpy as jnp
from jaxtyping import Float

from opd_jax import rollouts
from opd_jax.claims import Converges, Nothing
from opd_jax.losses import weights
from opd_jax.losses.divergences import ClampedPerEntry, Divergence, ForwardKL
from opd_jax.losses.normalisers import per_sequence
from opd_jax.losses.supports import FULL
from opd_jax.losses.terms import DivergenceTerm
from opd_jax.method import Evidence, Method, Requirements, WeightedTerms
from opd_jax.types import AnyArray, ScoreRequest

VARIANTS = {
  'printed thresholds': {'threshold': 0.8, 'bound': 3.0},
  'no threshold': {'threshold': -math.inf},
  'no bound': {'bound': math.inf},
  'not normalised': {'normalised': False},
  'whole entries': {'divergence': ForwardKL()},
  'shuffled': {'at_random': True},
}


def renio(
  *,
  threshold: float = 1.0,
  bound: float = 2.0,
  most: float = 10.0,
  normalised: bool = True,
  temperature: float = 1.1,
  divergence: Divergence = ClampedPerEntry(inner=ForwardKL(), max=0.05, min=0.0),
  at_random: bool = False,
) -> Method:
  r"""A divergence on whole responses, weighed by how unlikely the teacher finds the tokens that give them away.

      w_i ∝ exp( mean over t with l_t ≥ τ of min(l_t, c) ),   l = (log p - log q)(y),      loss = mean_i w_i mean_t D_t

  arXiv:2606.23104; w is 1 before it is divided by the batch's mean where no token reaches τ. τ = 1 and c = 2 are those
  of the released scripts, 0.8 and 3 are printed. D is their forward KL whose entries are held between 0 and 0.05, at
  temperature 1.1, as is l. Departs: the mean is of the batch, where theirs is of a device; the teacher's privileged
  context is a setting of the judge.

  Args:
    threshold: τ, in nats.
    bound: c.
    most: the most that a response counts, after the division.
    normalised: False neither divides by the batch's mean nor holds to `most`.
    temperature: of both models, in w and in D.
    divergence: D.
    at_random: the control: the same weights, dealt to the rows at random.
  """
  if not (threshold <= bound and most >= 1):
    raise ValueError(
      f'renio: threshold must be at most bound, and most at least 1; got {threshold}, {bound}, {most}.'
    )
  term = DivergenceTerm(divergence=divergence, support=FULL, temperature=temperature)

  def weight_of(evidence: Evidence) -> Float[AnyArray, 'B 1']:
    mask = evidence.mask
    there = jnp.asarray(mask).any(axis=1, keepdims=True)
    size = evidence.student.logp - evidence.teacher.logp
    telling = mask & (size >= threshold)
    weight = jnp.exp(weights.mean_logp(jnp.minimum(size, bound), telling))
    if at_random:
      weight = weights.dealt_at_random(evidence.key, weight, mask)
    weight = weight[:, None]
    return jnp.minimum(weights.mean_one(weight, there), most) if normalised else weight

  def weigh(evidence: Evidence) -> WeightedTerms:
    return (term(per_sequence(evidence.mask) * weight_of(evidence)),)

  tempered = ScoreRequest(temperature=temperature)
  bounded = isinstance(divergence, ClampedPerEntry)
  return Method(
    rollout=rollouts.student(),
    needs=Requirements(
      student=tempered, teacher=ScoreRequest(hidden=True, temperature=temperature)
    ),
    weigh=weigh,
    claim=Nothing('an entry at its bound has no gradient') if bounded else Converges(),
    paper='arXiv:2606.23104',
  )
