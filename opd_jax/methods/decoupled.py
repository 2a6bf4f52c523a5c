"""Decoupled distillation, arXiv:2605.16826: which KL, and on whose text, are two choices."""

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Int

from opd_jax import rollouts
from opd_jax.claims import Claim, Converges, Nothing, Unbiased
from opd_jax.losses.divergences import ForwardKL, ReverseKL
from opd_jax.losses.normalisers import per_token
from opd_jax.losses.supports import FULL
from opd_jax.losses.terms import DivergenceTerm
from opd_jax.method import Evidence, Method, Requirements, WeightedTerms, required_by
from opd_jax.types import AnyArray, ScoreRequest

VARIANTS = {
  'student, reverse': {'reverse': 1.0},
  'student, forward': {'reverse': 0.0},
  'teacher, reverse': {'reverse': 1.0, 'student_fraction': 0.0},
  'teacher, forward': {'reverse': 0.0, 'student_fraction': 0.0},
  'curriculum': {'lengths': (128, 512, 1024, 2048, 4096)},
}


def _claim(reverse: float, lengths: tuple[int, ...]) -> Claim:
  if lengths:
    return Nothing('at first only the beginnings of responses are learnt from')
  if reverse in (0.0, 1.0):
    return Unbiased(divergence=ReverseKL() if reverse else ForwardKL())
  return Converges()


def decoupled(
  *,
  reverse: float = 0.25,
  student_fraction: float = 1.0,
  lengths: tuple[int, ...] = (),
  min_entropy: float = 0.2,
  every: int = 50,
) -> Method:
  r"""A mixture of both KLs on text of the student, of the teacher, or of both; perhaps of growing length.

      loss = Σ_t [ λ KL(p ‖ q) + (1 - λ) KL(q ‖ p) ] / tokens

  arXiv:2605.16826: reverse KL alone is most accurate and loses its entropy on long text, a mixture that leans to
  forward KL keeps both; λ = 0.25 is ours. The curriculum learns the first L tokens of a response, and lets L grow to
  the next of `lengths` only while the student's mean entropy there is at least H. Departs: the entropy is that of the
  batch, the paper takes held-out text; responses are written to their end, the same loss without the saving. The paper
  begins at 128 tokens and ends at 4096; H and the steps between are ours.

  Args:
    reverse: λ.
    student_fraction: of the rows, those that the student writes; the teacher writes the others.
    lengths: L, in the order of the curriculum; empty ones learn whole responses.
    min_entropy: H, in nats.
    every: steps between two looks at the entropy.
  """
  if not 0 <= reverse <= 1 or list(lengths) != sorted(set(lengths)) or min((*lengths, every)) < 1:
    raise ValueError(
      'decoupled: reverse must lie between 0 and 1, lengths must rise and begin above 0, every must be at least 1; got '
      f'{reverse}, {lengths}, {every}.'
    )
  parts = ((reverse, ReverseKL()), (1 - reverse, ForwardKL()))
  terms = [
    (share, DivergenceTerm(divergence=each, support=FULL)) for share, each in parts if share > 0
  ]

  def kept(evidence: Evidence) -> Bool[AnyArray, 'B R']:
    if not lengths:
      return evidence.mask
    allowed = jnp.asarray(lengths)[evidence.memory]
    return evidence.mask & (jnp.cumsum(evidence.mask, axis=1) <= allowed)

  def weigh(evidence: Evidence) -> WeightedTerms:
    mean = per_token(kept(evidence))
    return tuple(term(share * mean) for share, term in terms)

  def remember(evidence: Evidence) -> Int[Array, '']:
    """The number of the length that is learnt next."""
    entropy = (per_token(kept(evidence)) * evidence.student.entropy).sum()
    look = (evidence.step + 1) % every == 0
    grown = jnp.minimum(evidence.memory + 1, len(lengths) - 1)
    return jnp.where(look & (entropy >= min_entropy), grown, evidence.memory)

  needs = required_by(*(term for _, term in terms))
  if lengths:
    needs |= Requirements(student=ScoreRequest(entropy=True))
  return Method(
    rollout=rollouts.RolloutMix(teacher=1.0 - student_fraction),
    needs=needs,
    weigh=weigh,
    claim=_claim(reverse, lengths),
    memory=np.int32(0) if lengths else None,
    remember=remember if lengths else None,
    paper='arXiv:2605.16826',
  )
