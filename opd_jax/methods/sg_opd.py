"""SG-OPD, arXiv:2606.09304: beyond the teacher only where the outcome pulls the same way."""

import jax.numpy as jnp
from jaxtyping import Bool, Float

from opd_jax import rollouts
from opd_jax.claims import Claim, Converges, Nothing
from opd_jax.losses import advantages, selectors, weights
from opd_jax.losses.normalisers import per_sequence
from opd_jax.losses.terms import ClippedRatio, Likelihood
from opd_jax.method import Evidence, Method, Requirements, WeightedTerms
from opd_jax.ramps import Number, Piecewise, Ramp, at, extremes
from opd_jax.types import TEACHER, AnyArray, ScoreRequest

Mask = Bool[AnyArray, 'B R']
Rows = Float[AnyArray, ' B']
Tokens = Float[AnyArray, 'B R']

VARIANTS = {
  'gate only': {'taught': 0.0},
  'taught only': {'strength': 1.0},
  'outcome in conflict': {'conflict': None},
  'random gate': {'at_random': 0.3},
}


def _claim(strength: float, conflict: float | None, taught: Number) -> Claim:
  if strength != 1.0:
    return Nothing('where outcome and teacher agree, the student is led beyond the teacher')
  if extremes(taught)[1] > 0:
    return Nothing('only those answers of the teacher are taught that are right')
  if conflict is None or conflict <= 0:
    return Nothing('where outcome and teacher disagree, the teacher is not followed')
  return Converges()


def sg_opd(
  *,
  strength: float = 1.8,
  conflict: float | None = 1.0,
  bound: float = 1.0,
  taught: Number = Piecewise(points=((34, 0.125), (35, 0.0))),
  alpha: Number = Ramp(begin=0.1, end=0.0, steps=5, delay=30, shape='cosine'),
  clip: float = 0.2,
  importance: float = 5.0,
  at_random: float | None = None,
) -> Method:
  r"""The teacher, and beyond it where the outcome agrees with it; beside that, likelihood of its own right answers.

      A_t = d_t + (λ - 1)(log q - log r)(y_t)  where a_i d_t > 0,  else β d_t;       d_t = (log q - log p)(y_t)
      loss = mean_i (1 / n_i) Σ_t PPO( φ_t A_t ) + α · NLL of the teacher's right responses,    φ_t ∝ min(1, τ / |d_t|)

  arXiv:2606.09304, λ = 1.8, β = 1; a is the group's advantage of the outcome, r the student before training, φ has
  mean one. The paper prints d with the opposite sign, its figure and loss need this one. It gives no τ and no α; ours
  are 1 and 0.1, down to 0 from step 30 to 35 of 100.

  Args:
    strength: λ; 1 leaves the teacher's own gap where the gate is open.
    conflict: β, where outcome and teacher disagree; None follows the outcome there: a instead of d.
    bound: τ, in nats.
    taught: the fraction of rows that the teacher writes, while α is above 0: it ends where α does.
    alpha: weight of their likelihood, by step.
    clip: of the ratio; it acts from the second update of a batch on.
    importance: the most that a token counts for being rarer in the sampler's distribution than in the student's.
    at_random: the control: the gate opens for this fraction of every response's tokens, drawn; signs agreed on 0.3.
  """
  ratio = ClippedRatio(low=clip, high=clip)

  def advantage_of(evidence: Evidence, outcome: Rows, mask: Mask) -> Tokens:
    teacher, student = evidence.teacher.logp, evidence.student.logp
    gap, reference = advantages.log_ratio(teacher, student), evidence.judge('reference').logp
    gate = weights.sign_gate(outcome, gap)
    if at_random is not None:
      gate = selectors.random_mask(evidence.key, mask, fraction=at_random) > 0
    beyond = advantages.extrapolated(teacher, student, reference, strength=strength)
    otherwise = outcome[:, None] if conflict is None else conflict * gap
    held = weights.mean_one(bound / jnp.maximum(jnp.abs(gap), bound), mask)
    return held * jnp.where(gate, beyond, otherwise)

  def weigh(evidence: Evidence) -> WeightedTerms:
    rollout, student = evidence.rollout, evidence.student.logp
    lesson = rollout.mask & (rollout.writer == TEACHER)
    theirs = jnp.asarray(lesson).any(axis=1)
    mask = evidence.mask & ~theirs[:, None]
    own = jnp.where(theirs, jnp.nan, rollout.reward)
    advantage = advantage_of(evidence, weights.group_advantage(own, rollout.prompt.group), mask)
    sampler = weights.truncated_importance(student, rollout.behaviour_logp, max=importance)
    counts = per_sequence(mask) * jnp.where(mask, sampler, 0.0)
    verified = per_sequence(lesson & weights.right(rollout.reward)[:, None])
    return (
      ratio(counts, advantage=advantage, behaviour_logp=student),
      Likelihood()(at(alpha, evidence.step) * verified),
    )

  return Method(
    rollout=rollouts.RolloutMix(teacher=taught),
    needs=Requirements(others={'reference': ScoreRequest()}),
    weigh=weigh,
    claim=_claim(strength, conflict, taught),
    paper='arXiv:2606.09304',
  )
