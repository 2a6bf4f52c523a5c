"""ExOPD, the extrapolating case of G-OPD, arXiv:2602.12125."""

from opd_jax import rollouts
from opd_jax.claims import Unbiased
from opd_jax.losses import advantages
from opd_jax.losses.divergences import ReverseKL
from opd_jax.losses.normalisers import per_token
from opd_jax.losses.supports import FULL
from opd_jax.losses.terms import ClippedRatio, DivergenceTerm
from opd_jax.method import Evidence, Method, Requirements, WeightedTerms, required_by
from opd_jax.static import static
from opd_jax.types import ScoreRequest

VARIANTS = {'exact': {'exact': True}}


@static
class Extrapolated:
  """p ∝ r^(1-λ) q^λ."""

  strength: float

  def __call__(self, log_q, log_r):
    return self.strength * log_q + (1 - self.strength) * log_r


def exopd(
  *, strength: float = 1.25, clip: float = 0.2, dual: float | None = 3.0, exact: bool = False
) -> Method:
  r"""Beyond the teacher, in the direction that leads from a reference to it.

      A_t = (log q - log p)(y_t) + (λ - 1)(log q - log r)(y_t);      the optimum is p ∝ r^(1-λ) q^λ

  arXiv:2602.12125, λ = 1.25; r is the student before training unless the run names another. λ = 1 is OPD, λ = 1.8 was
  seen to collapse (arXiv:2606.09304).

  Args:
    strength: λ.
    clip, dual: of the ratio; they act from the second update of a batch on.
    exact: takes λ KL(p ‖ q) + (1 - λ) KL(p ‖ r) over the whole vocabulary instead of the sampled token.
  """
  ratio = ClippedRatio(low=clip, high=clip, dual=dual)
  guides = [
    DivergenceTerm(divergence=ReverseKL(), support=FULL, of=judge)
    for judge in ('teacher', 'reference')
  ]

  def sampled(evidence: Evidence) -> WeightedTerms:
    student = evidence.student.logp
    reference = evidence.judge('reference').logp
    advantage = advantages.extrapolated(
      evidence.teacher.logp, student, reference, strength=strength
    )
    return (ratio(per_token(evidence.mask), advantage=advantage, behaviour_logp=student),)

  def whole(evidence: Evidence) -> WeightedTerms:
    mean, (teacher, reference) = per_token(evidence.mask), guides
    return teacher(mean * strength), reference(mean * (1 - strength))

  return Method(
    rollout=rollouts.student(),
    needs=required_by(*guides) if exact else Requirements(others={'reference': ScoreRequest()}),
    weigh=whole if exact else sampled,
    claim=Unbiased(divergence=ReverseKL(), optimum=Extrapolated(strength=strength)),
    paper='arXiv:2602.12125',
  )
