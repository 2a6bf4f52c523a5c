"""OPD+, arXiv:2606.01039: the right advantage for every f-divergence."""

from opd_jax import rollouts
from opd_jax.claims import Nothing, Unbiased
from opd_jax.losses import advantages
from opd_jax.losses.divergences import Divergence, ForwardKL, JensenShannon, ReverseKL
from opd_jax.losses.normalisers import per_token
from opd_jax.losses.terms import PolicyGradient
from opd_jax.method import Evidence, Method, WeightedTerms

VARIANTS = {'forward_kl': {'divergence': ForwardKL()}, 'naive': {'corrected': False}}


def opd_plus(
  *, divergence: Divergence = JensenShannon(), corrected: bool = True, bound: float = 6.0
) -> Method:
  r"""Any f-divergence from sampled tokens alone, with the reward's own dependence on the student accounted for.

      A_t = -f(u_t) + u_t f'(u_t),   zero at agreement,      u_t = q(y_t) / p(y_t)

  arXiv:2606.01039. The naive -f(u) has a biased gradient for all but reverse KL; `corrected=False` is that control.
  Departs: divides by tokens, the published recipe sums.

  Args:
    divergence: any of `losses/divergences.py`.
    corrected: False takes the naive reward.
    bound: log u is held within ±bound first; forward KL's advantage is exponential in it. The gradient is unbiased as
      long as no token lies beyond.
  """
  advantage_of = advantages.corrected if corrected else advantages.naive

  def weigh(evidence: Evidence) -> WeightedTerms:
    gap = advantages.log_ratio(evidence.teacher.logp, evidence.student.logp)
    advantage = advantage_of(divergence, advantages.clipped(gap, min=-bound, max=bound))
    return (PolicyGradient()(per_token(evidence.mask) * advantage),)

  return Method(
    rollout=rollouts.student(),
    weigh=weigh,
    claim=Unbiased(divergence=divergence)
    if corrected or divergence == ReverseKL()
    else Nothing('the reward forgets that f depends on the student'),
    paper='arXiv:2606.01039',
  )
