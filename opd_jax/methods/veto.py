"""Veto, arXiv:2601.07155: a target between teacher and student, which the student reaches for step by step."""

import jax
import jax.numpy as jnp

from opd_jax import rollouts
from opd_jax.claims import Claim, Converges, Nothing
from opd_jax.losses import advantages
from opd_jax.losses.normalisers import per_token
from opd_jax.losses.terms import Candidates, PolicyGradient
from opd_jax.method import Evidence, Method, Requirements, WeightedTerms
from opd_jax.ramps import Moving, Number, Ramp, at, extremes
from opd_jax.static import static
from opd_jax.types import ScoreRequest

VARIANTS = {
  'constant': {'beta': 0.5},
  'forward': {'forward': True},
  'forward, constant': {'forward': True, 'beta': 0.5},
}


@static
class Sharpened:
  """p ∝ q^(1 / (1 - β)): the only p that is its own target."""

  beta: float

  def __call__(self, log_q, log_r):
    return log_q / (1 - self.beta)


def _claim(beta: Number, forward: bool) -> Claim:
  if isinstance(beta, Moving):
    return Nothing('the target moves: the sharpened teacher at first, the teacher in the end')
  if forward:
    return Nothing('entries outside the top k of the student are not taught')
  if beta == 1.0:
    return Nothing('at β = 1 the likeliest token of the teacher is all that is left')
  return Converges(optimum=Sharpened(beta=beta))


def veto(
  *, beta: Number = Ramp(begin=0.8, end=0.0, steps=100), forward: bool = False, k: int = 64
) -> Method:
  r"""Distillation towards Q ∝ q p^β, with β falling to zero: where the student has no mass, it is not pushed at once.

      reverse: KL(p ‖ Q), A_t = log q(y_t) - (1 - β) log p(y_t),      loss = -Σ A_t log p(y_t) / tokens
      forward: KL(Q ‖ p),                                             loss = -Σ_t Σ_v Q(v) log p(v) / tokens

  arXiv:2601.07155, which has no code; Q is a number in both. β falls in a straight line from 0.8 (mathematics; 1 for
  code, 0.3 for summaries) to zero. A constant β < 1 ends at p ∝ q^(1 / (1 - β)). The paper has both directions and
  compares whole distributions. Departs: reverse takes the sampled token, the same gradient in expectation; forward
  takes the student's top k, on which Q is renormalised.

  Args:
    beta: β, by step.
    forward: KL(Q ‖ p) instead of KL(p ‖ Q).
    k: entries of the student that the forward direction compares.
  """
  if not 0 <= min(extremes(beta)) <= max(extremes(beta)) <= 1:
    raise ValueError(f'veto: beta must stay between 0 and 1, got {beta}.')

  def reverse(evidence: Evidence) -> WeightedTerms:
    student = evidence.student.logp
    gap = advantages.log_ratio(evidence.teacher.logp, student)
    advantage = gap + at(beta, evidence.step) * student
    return (PolicyGradient()(per_token(evidence.mask) * advantage),)

  def bridged(evidence: Evidence) -> WeightedTerms:
    own, theirs = evidence.student.top_k, evidence.teacher.at_ids
    target = jax.nn.softmax(theirs.logp + at(beta, evidence.step) * own.logp)
    target = jnp.where(evidence.mask[..., None], target, 0.0)
    return (Candidates()(per_token(evidence.mask), ids=own.ids, weights=target),)

  asked = Requirements(student=ScoreRequest(top_k=k), teacher=ScoreRequest(at_student_top_k=k))
  return Method(
    rollout=rollouts.student(),
    needs=asked if forward else Requirements(),
    weigh=bridged if forward else reverse,
    claim=_claim(beta, forward),
    paper='arXiv:2601.07155',
  )
