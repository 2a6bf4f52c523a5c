"""ESR, arXiv:2605.27028: the student is stopped after a hundred tokens, and learns from those."""

import jax.numpy as jnp
from jaxtyping import Bool

from opd_jax import rollouts
from opd_jax.claims import Nothing, Unbiased
from opd_jax.losses import advantages, selectors
from opd_jax.losses.divergences import ReverseKL
from opd_jax.losses.normalisers import per_sequence
from opd_jax.losses.terms import PolicyGradient
from opd_jax.method import Evidence, Method, WeightedTerms
from opd_jax.types import AnyArray

WHERE = ('stop', 'first', 'last', 'random')
VARIANTS = {
  'first': {'where': 'first'},
  'last': {'where': 'last'},
  'random': {'where': 'random'},
}


def esr(*, tokens: int = 100, where: str = 'stop') -> Method:
  r"""OPD on responses that are stopped early: later tokens answer to prefixes that a teacher would not have written.

      loss = mean_i (1 / T_i) Σ_{t ≤ T_i} -(log q - log p)(y_t) log p(y_t),      T_i = min(n_i, N)

  arXiv:2605.27028, N = 100; 50 to 200 do as well. The paper stops the writer and never masks whole responses: that is
  what the variants do, at the same budget. With a strong teacher the horizon is far longer (arXiv:2605.30833).

  Args:
    tokens: N.
    where: 'stop' ends the response there; 'first', 'last' and 'random' count N tokens of whole responses.
  """
  if tokens < 1 or where not in WHERE:
    raise ValueError(
      f'esr: tokens must be at least 1 and where one of {", ".join(WHERE)}; got {tokens}, {where!r}.'
    )

  def kept(evidence: Evidence) -> Bool[AnyArray, 'B R']:
    mask = evidence.mask
    number = jnp.cumsum(mask, axis=1)
    first = mask & (number <= tokens)
    if where == 'last':
      return mask & (number > number[:, -1:] - tokens)
    return selectors.drawn_like(evidence.key, first, mask) if where == 'random' else first

  def weigh(evidence: Evidence) -> WeightedTerms:
    gap = advantages.log_ratio(evidence.teacher.logp, evidence.student.logp)
    return (PolicyGradient()(per_sequence(kept(evidence)) * gap),)

  return Method(
    rollout=rollouts.student(stop_after=tokens if where == 'stop' else None),
    weigh=weigh,
    claim=Unbiased(divergence=ReverseKL())
    if where == 'stop'
    else Nothing('tokens of whole responses are dropped'),
    paper='arXiv:2605.27028',
  )
