"""vOPD, arXiv:2605.07865: OPD with its value as a baseline."""

from opd_jax import rollouts
from opd_jax.claims import Unbiased
from opd_jax.losses import advantages
from opd_jax.losses.divergences import ReverseKL
from opd_jax.losses.normalisers import per_token
from opd_jax.losses.supports import FULL, Support
from opd_jax.losses.terms import DivergenceTerm, PolicyGradient
from opd_jax.method import Evidence, Method, Requirements, WeightedTerms

VARIANTS = {}


def vopd(*, support: Support = FULL) -> Method:
  r"""OPD less the advantage that one expects at a prefix, which is minus the reverse KL there.

      A_t = log q(y_t) - log p(y_t) + KL(p ‖ q)(x, y_<t),      loss = -Σ A_t log p(y_t) / tokens

  arXiv:2605.07865. A baseline that does not depend on y_t leaves the expected gradient alone; here the sampled
  advantage has mean zero at every prefix. The KL is a number, without a gradient.

  Args:
    support: where the KL is taken: the whole vocabulary, or the paper's top k of the student.
  """

  def weigh(evidence: Evidence) -> WeightedTerms:
    gap = advantages.log_ratio(evidence.teacher.logp, evidence.student.logp)
    advantage = gap + evidence.measures['kl']
    return (PolicyGradient()(per_token(evidence.mask) * advantage),)

  return Method(
    rollout=rollouts.student(),
    needs=Requirements(measures={'kl': DivergenceTerm(divergence=ReverseKL(), support=support)}),
    weigh=weigh,
    claim=Unbiased(divergence=ReverseKL()),
    paper='arXiv:2605.07865',
  )
