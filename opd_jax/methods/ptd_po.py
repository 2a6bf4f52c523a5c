"""PTD-PO, arXiv:2606.07000: reinforcement learning, and a tutor with a hint where it fails."""

import jax.numpy as jnp

from opd_jax import rollouts
from opd_jax.claims import Nothing
from opd_jax.losses import weights
from opd_jax.losses.divergences import Divergence, JensenShannon
from opd_jax.losses.normalisers import filtered, per_token
from opd_jax.losses.rest_rules import Tail
from opd_jax.losses.supports import Support, best
from opd_jax.losses.terms import K3, ClippedRatio, DivergenceTerm
from opd_jax.method import Evidence, Method, Requirements, WeightedTerms, required_by
from opd_jax.types import ScoreRequest

VARIANTS = {
  '8b': {'coefficient': 0.05},
  'hard questions': {'below': 0.4},
  'no reference': {'reference': 0.0},
}


def ptd_po(
  *,
  coefficient: float = 0.5,
  k: int = 50,
  below: float = 1.0,
  divergence: Divergence = JensenShannon(),
  reference: float = 0.01,
  clip: float = 0.2,
) -> Method:
  r"""GRPO on every response, and on failed ones a divergence to a frozen model that is shown a hint.

      loss = Σ_t [ PPO( a_i ) + 0.01 k3(p, r) ] / tokens + λ Σ_{t in F} D(p_t, q_t) / |F|

  arXiv:2606.07000; F are the tokens of failed responses to questions whose mean reward is below τ = 1, D is JSD on the
  best k of either model and the rest as one entry; k is 100 in the paper, whose ablation has 50 and 200 too. λ is 0.5
  (4B) or 0.05 (8B). Two audits of the released code find that its JSD stops the gradient of the student's weights, and
  has none at all; this is the paper's formula. Where the hint is missing, the terms of the reward stay.

  Args:
    coefficient: λ.
    k: of either model.
    below: τ.
    divergence: D.
    reference: of the KL to the reference.
    clip: of the ratio; it acts from the second update of a batch on.
  """
  term = DivergenceTerm(
    divergence=divergence, support=Support(entries=best(k, of='either'), rest=Tail())
  )
  ratio = ClippedRatio(low=clip, high=clip)

  def weigh(evidence: Evidence) -> WeightedTerms:
    rollout, student, anchor = evidence.rollout, evidence.student.logp, evidence.judge('reference')
    own, group = per_token(rollout.mask), rollout.prompt.group
    outcome = weights.group_advantage(rollout.reward, group)[:, None]
    failed = weights.wrong(rollout.reward) & (weights.group_mean(rollout.reward, group) < below)
    return (
      ratio(own, advantage=jnp.broadcast_to(outcome, student.shape), behaviour_logp=student),
      K3()(own * reference * anchor.known, teacher_logp=anchor.logp),
      term(coefficient * filtered(evidence.mask, failed)),
    )

  return Method(
    rollout=rollouts.student(),
    needs=required_by(term) | Requirements(others={'reference': ScoreRequest()}),
    weigh=weigh,
    claim=Nothing('what a verifier rewards is reinforced, whatever the teacher thinks of it'),
    paper='arXiv:2606.07000',
  )
