"""SEAD, arXiv:2606.28562: three zones of tokens by the entropies of both models."""

import jax
from jaxtyping import Bool

from opd_jax import rollouts
from opd_jax.claims import Converges, Nothing
from opd_jax.losses import selectors
from opd_jax.losses.divergences import ForwardKL, ReverseKL
from opd_jax.losses.normalisers import per_token
from opd_jax.losses.supports import FULL, Support
from opd_jax.losses.terms import DivergenceTerm
from opd_jax.method import Evidence, Method, Requirements, WeightedTerms, required_by
from opd_jax.ramps import Number, Ramp, at
from opd_jax.types import AnyArray, ScoreRequest

Zone = Bool[AnyArray, 'B R']
VARIANTS = {
  'towards reverse': {'towards_reverse': True},
  'random zones': {'at_random': True},
}


def sead(
  *,
  open_part: float = 0.1,
  unsure_part: float = 0.4,
  alpha: Number = Ramp(begin=0.8, end=0.0, steps=200, shape='cosine'),
  towards_reverse: bool = False,
  support: Support = FULL,
  at_random: bool = False,
) -> Method:
  r"""Nothing where both models are sure, reverse KL where only the teacher is, forward KL where the teacher is not.

      loss = ( Σ_{t in B} KL(p ‖ q) + α Σ_{t in C} KL(q ‖ p) ) / (tokens in B and C)

  arXiv:2606.28562. C is the tenth of the batch's tokens with the largest H_T, B the four tenths with the largest H_S
  among the others, the remaining half is skipped; α falls from 0.8 to 0 along a cosine. We do not know over how many
  steps, ours are 200, nor the factor that α has besides, ours is 1. Departs: its entropies are over a top k, and its
  curriculum, easy questions first, is left to the order of the data.

  Args:
    open_part, unsure_part: of the batch's tokens in C and in B.
    alpha: α, by step.
    towards_reverse: C takes α KL(q ‖ p) + (1 - α) KL(p ‖ q), as its abstract may be read.
    support: where both KLs are taken.
    at_random: the control: zones of the same sizes, drawn.
  """
  if min(open_part, unsure_part) <= 0 or open_part + unsure_part > 1:
    raise ValueError(
      f'sead: both parts must be above 0 and at most 1 together, got {open_part}, {unsure_part}.'
    )
  reverse, forward = (
    DivergenceTerm(divergence=each, support=support) for each in (ReverseKL(), ForwardKL())
  )

  def zones(evidence: Evidence) -> tuple[Zone, Zone]:
    mask, row = evidence.mask, evidence.rollout.prompt.row
    teacher, student = evidence.teacher.entropy, evidence.student.entropy
    if at_random:
      teacher, student = jax.random.uniform(evidence.key, (2, *mask.shape))
    best = lambda score, among, part: selectors.best_of_the_batch(score, among, row, fraction=part)
    wide = best(teacher, mask, open_part)
    return best(student, mask & ~wide, min(1.0, unsure_part / (1 - open_part))), wide

  def weigh(evidence: Evidence) -> WeightedTerms:
    unsure, wide = zones(evidence)
    counts, share = per_token(unsure | wide), at(alpha, evidence.step)
    rest = (1 - share) * wide if towards_reverse else 0.0
    return reverse(counts * (unsure + rest)), forward(counts * wide * share)

  entropy = Requirements(student=ScoreRequest(entropy=True), teacher=ScoreRequest(entropy=True))
  return Method(
    rollout=rollouts.student(),
    needs=entropy | required_by(reverse, forward),
    weigh=weigh,
    claim=Converges()
    if at_random and support == FULL
    else Nothing('half of the tokens are not learnt from'),
    paper='arXiv:2606.28562',
  )
