"""OPDVR, arXiv:2608.24696: the outcome says whether a token rises or falls, the teacher by how much."""

import jax.numpy as jnp
from jaxtyping import Float

from opd_jax import rollouts
from opd_jax.claims import Nothing
from opd_jax.losses import advantages, selectors, weights
from opd_jax.losses.normalisers import per_sequence
from opd_jax.losses.terms import PolicyGradient
from opd_jax.method import Evidence, Method, WeightedTerms
from opd_jax.types import AnyArray

GATES = ('agreed', 'conflicting', 'random')
VARIANTS = {
  'grouped': {'grouped': True},
  'conflicting': {'gate': 'conflicting'},
  'random gate': {'gate': 'random'},
}


def opdvr(*, grouped: bool = False, gate: str = 'agreed') -> Method:
  r"""OPD on those tokens on which teacher and outcome pull the same way; the others are left alone.

      A_t = max(0, d_t) in right responses, -max(0, -d_t) in wrong ones,   d_t = (log q - log p)(y_t)
      loss = -mean_i (1 / n_i) Σ_t A_t log p(y_t)

  arXiv:2608.24696. Its loss of one response is a sum, that of its grouped form (GRPD) a mean per response: we take the
  mean for both. A gated token counts in n. A response that nobody verified does not count.

  Args:
    grouped: GRPD: right means better than the group's mean; a group that agrees teaches nothing.
    gate: 'agreed'; 'conflicting' is the paper's ablation, the other tokens; 'random' is the control, as many tokens
      of every response as agree, drawn.
  """
  if gate not in GATES:
    raise ValueError(f'opdvr: gate is one of {", ".join(GATES)}; got {gate!r}.')

  def sign_of(evidence: Evidence) -> Float[AnyArray, ' B']:
    reward = evidence.rollout.reward
    if grouped:
      return jnp.sign(weights.group_advantage(reward, evidence.rollout.prompt.group))
    return weights.right(reward) * 1.0 - weights.wrong(reward) * 1.0

  def weigh(evidence: Evidence) -> WeightedTerms:
    known = ~weights.unknown(evidence.rollout.reward)
    mask = evidence.mask & known[:, None]
    gap = advantages.log_ratio(evidence.teacher.logp, evidence.student.logp)
    agreed = mask & weights.sign_gate(sign_of(evidence), gap)
    other = {
      'conflicting': mask & weights.sign_gate(-sign_of(evidence), gap),
      'random': selectors.drawn_like(evidence.key, agreed, mask),
    }
    return (PolicyGradient()(per_sequence(mask) * other.get(gate, agreed) * gap),)

  return Method(
    rollout=rollouts.student(),
    weigh=weigh,
    claim=Nothing('tokens on which teacher and outcome disagree are not learnt from'),
    paper='arXiv:2608.24696',
  )
