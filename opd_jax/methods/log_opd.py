"""Log-compressed and clipped on-policy distillation, arXiv:2607.13399."""

from opd_jax import rollouts
from opd_jax.claims import Converges
from opd_jax.losses import advantages
from opd_jax.losses.normalisers import per_token
from opd_jax.losses.terms import ClippedRatio
from opd_jax.method import Evidence, Method, WeightedTerms

VARIANTS = {'clipped': {'bound': 5.0}}


def log_opd(*, bound: float | None = None, clip: float = 0.2) -> Method:
  r"""OPD whose large gaps count by their logarithm: a handful of tokens no longer decides a step.

      A_t = sign(d_t) log(1 + |d_t|),   d_t = (log q - log p)(y_t),      loss = Σ PPO( A_t ) / tokens

  arXiv:2607.13399. It is compared there with a clip whose bounds are not given.

  Args:
    bound: d is held within ±bound instead of compressed.
    clip: of the ratio; it acts from the second update of a batch on.
  """
  ratio = ClippedRatio(low=clip, high=clip)

  def weigh(evidence: Evidence) -> WeightedTerms:
    student = evidence.student.logp
    gap = advantages.log_ratio(evidence.teacher.logp, student)
    held = (
      advantages.log_compressed(gap)
      if bound is None
      else advantages.clipped(gap, min=-bound, max=bound)
    )
    return (ratio(per_token(evidence.mask), advantage=held, behaviour_logp=student),)

  return Method(
    rollout=rollouts.student(), weigh=weigh, claim=Converges(), paper='arXiv:2607.13399'
  )
