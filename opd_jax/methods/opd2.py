"""OPD², arXiv:2607.15161: what the teacher's own training changed, where the teacher agrees with it."""

import jax.numpy as jnp

from opd_jax import rollouts
from opd_jax.claims import Claim, Converges, Nothing
from opd_jax.losses import advantages
from opd_jax.losses.divergences import ReverseKL
from opd_jax.losses.normalisers import per_token
from opd_jax.losses.supports import FULL
from opd_jax.losses.terms import DivergenceTerm, PolicyGradient
from opd_jax.method import Evidence, Method, Requirements, WeightedTerms
from opd_jax.types import ScoreRequest

VARIANTS = {
  'unconditional': {'conditional': False},
  'uncentred': {'centred': False},
  'without delta': {'delta': False},
}


def opd2(
  *, scale: float = 0.1, conditional: bool = True, centred: bool = True, delta: bool = True
) -> Method:
  r"""The teacher's gain over its own base as an advantage, on tokens where the teacher's gap has the same sign.

      D_t = (log q - log r)(y_t) - E_p[log q - log r],   O_t = (log q - log p)(y_t) + KL(p ‖ q)
      A_t = 0.1 D_t where D_t O_t > 0, else 0,      loss = -Σ A_t log p(y_t) / tokens

  arXiv:2607.15161. r is the teacher before its last training: bind the judge `reference` to those weights. Departs:
  expectations are over the whole vocabulary, where the paper takes the student's best 1024, and logits are not divided
  by its 0.7. How its ablation leaves the centring out is our reading: both advantages keep their means.

  Args:
    scale: of the advantage.
    conditional: False takes D everywhere: nothing then holds the student back from the teacher's largest gain.
    centred: False leaves both expectations out.
    delta: False takes O instead of D: OPD with its value as a baseline.
  """
  if not scale > 0:
    raise ValueError(f'opd2: scale must be above 0, got {scale}.')
  kl = lambda judge: DivergenceTerm(divergence=ReverseKL(), support=FULL, of=judge)

  def weigh(evidence: Evidence) -> WeightedTerms:
    student, teacher = evidence.student.logp, evidence.teacher.logp
    to_teacher, to_base = evidence.measures['to teacher'], evidence.measures['to base']
    gain = advantages.delta(teacher, evidence.judge('reference').logp)
    gap = advantages.log_ratio(teacher, student)
    if centred:
      gain, gap = gain - (to_base - to_teacher), gap + to_teacher  # E_p[log q - log r]
    advantage = gain if delta else gap
    if conditional and delta:
      advantage = jnp.where(gain * gap > 0, gain, 0.0)
    return (PolicyGradient()(per_token(evidence.mask) * scale * advantage),)

  claim: Claim = Nothing('tokens whose gain and gap differ in sign are left out')
  if not conditional:
    claim = Nothing('it runs after the largest gain, and nothing holds it back')
  return Method(
    rollout=rollouts.student(),
    needs=Requirements(
      others={'reference': ScoreRequest()},
      measures={'to teacher': kl('teacher'), 'to base': kl('reference')},
    ),
    weigh=weigh,
    claim=claim if delta else Converges(),
    paper='arXiv:2607.15161',
  )
