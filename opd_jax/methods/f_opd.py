"""f-OPD, arXiv:2605.17862: responses count by how fresh they still are."""

import jax.numpy as jnp

from opd_jax import rollouts
from opd_jax.claims import Converges
from opd_jax.losses import advantages, weights
from opd_jax.losses.normalisers import per_sequence
from opd_jax.losses.terms import ImportanceRatio
from opd_jax.method import Evidence, Method, WeightedTerms

VARIANTS = {
  'without anchor': {'anchor': 0.0},
  'at random': {'at_random': True},
}


def f_opd(
  *, threshold: float = 0.1, drift: float = 1.0, anchor: float = 0.1, at_random: bool = False
) -> Method:
  r"""OPD of responses that older weights wrote, by their freshness, held back to those weights.

      L = mean_i relu(f_i - ξ) [ OPD_i + λ KL(p ‖ behaviour)_i ],      f_i = exp(-α √KL_i), estimated on its tokens

  arXiv:2605.17862, eqs. 11 to 15; the paper has no numbers for ξ, α and λ, and leaves OPD_i open: here -ρ A, as the
  blog of Thinking Machines has it. Departs: a method does not know the age in updates, so f lacks its 1 / (age + 1);
  the teacher's context does not age within a step, so its drift is 0, as the paper says of that case; no buffer is
  renewed. Text here is stale by `Stage.staleness`, `Stage.updates` and `Stage.minibatches`, and is scored anew before
  each update.

  Args:
    threshold: ξ; less fresh responses do not count.
    drift: α.
    anchor: λ.
    at_random: deals the weights of a batch to its responses at random: the control of their choice.
  """
  if not 0 <= threshold < 1 or drift < 0 or anchor < 0:
    raise ValueError(
      'f_opd: threshold must lie in [0, 1), drift and anchor must not be negative; got '
      f'{threshold}, {drift}, {anchor}.'
    )
  ratio = ImportanceRatio()

  def weigh(evidence: Evidence) -> WeightedTerms:
    mask, own, drawn = evidence.mask, evidence.student.logp, evidence.rollout.behaviour_logp
    fresh = weights.freshness(own, drawn, mask, drift=drift)
    weight = jnp.maximum(fresh - threshold, 0.0)
    if at_random:
      weight = weights.dealt_at_random(evidence.key, weight, mask)
    gap = advantages.log_ratio(evidence.teacher.logp, own)
    # E_behaviour[ρ log ρ ∇ log p] = ∇ KL(p ‖ behaviour): the anchor is one more advantage.
    advantage = gap - anchor * (own - drawn)
    coefficient = per_sequence(mask) * weight[:, None]
    return (ratio(coefficient, advantage=advantage, behaviour_logp=drawn),)

  return Method(
    rollout=rollouts.student(),
    weigh=weigh,
    claim=Converges(),
    reweigh=True,
    paper='arXiv:2605.17862',
  )
