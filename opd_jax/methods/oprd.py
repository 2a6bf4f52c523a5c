"""OPRD, arXiv:2606.06021, on the last layer: the student's states follow the teacher's."""

import jax
import jax.numpy as jnp

from opd_jax import rollouts
from opd_jax.claims import Nothing
from opd_jax.losses import advantages, selectors
from opd_jax.losses.normalisers import per_token
from opd_jax.losses.terms import HiddenDistance, PolicyGradient
from opd_jax.method import Evidence, Method, Requirements, WeightedTerms
from opd_jax.types import ScoreRequest

VARIANTS = {
  'beside opd': {'mu': 10.0, 'beside_opd': True},
  'random tokens': {'at_random': True},
}


def oprd(
  *, count: int = 2000, mu: float = 1.0, beside_opd: bool = False, at_random: bool = False
) -> Method:
  r"""The mean squared distance of the states before the head, on the last tokens of a response.

      loss = Σ_{t among the last 2000} ‖h_t - h'_t‖² / d / their number,      h' of the teacher, d the width

  arXiv:2606.06021 and its code, where the distance is the mean over *all* layers. Departs: the last one only, after the
  last norm, which is the last of the states that the code compares. Both models must have one width; the paper keeps
  to copies of one architecture, and warns that states of different ones are nearly orthogonal.

  Args:
    count: tokens of a response that count, from its end.
    mu: μ, of the distance.
    beside_opd: adds OPD over all tokens; the paper's best μ is then 10.
    at_random: draws as many tokens at random: the control of their choice.
  """
  if not mu > 0:
    raise ValueError(f'oprd: mu must be above 0, got {mu}.')

  def weigh(evidence: Evidence) -> WeightedTerms:
    mask, teacher = evidence.mask, evidence.teacher
    position = jnp.broadcast_to(jnp.arange(mask.shape[1], dtype=float), mask.shape)
    score = jax.random.uniform(evidence.key, mask.shape) if at_random else position
    chosen = selectors.top_count(score, mask, count=count) > 0
    terms = (HiddenDistance()(mu * per_token(chosen), hidden=teacher.hidden),)
    if not beside_opd:
      return terms
    gap = advantages.log_ratio(teacher.logp, evidence.student.logp)
    return PolicyGradient()(per_token(mask) * gap), *terms

  return Method(
    rollout=rollouts.student(),
    needs=Requirements(teacher=ScoreRequest(hidden=True)),
    weigh=weigh,
    claim=Nothing(
      'states are compared, not distributions: with heads that differ they lead elsewhere'
    ),
    paper='arXiv:2606.06021',
  )
