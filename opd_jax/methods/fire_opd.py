"""FiRe-OPD, arXiv:2606.02684: filter responses, then weigh tokens by two confidences."""

import jax
from jaxtyping import Float

from opd_jax import rollouts
from opd_jax.claims import Converges
from opd_jax.losses import advantages, weights
from opd_jax.losses.normalisers import filtered, per_sequence
from opd_jax.losses.terms import ClippedRatio
from opd_jax.method import Evidence, Method, Requirements, WeightedTerms
from opd_jax.types import AnyArray, ScoreRequest

VARIANTS = {
  'no filter': {'drop': 0.0},
  'filter only': {'drop': 0.4, 'teacher': 0.0, 'student': 0.0},
  'random filter': {'drop': 0.4, 'at_random': True},
  'as released': {'alone': True},
}


def fire_opd(
  *,
  drop: float = 0.2,
  teacher: float = 1.0,
  student: float = 1.0,
  clip: float = 0.2,
  at_random: bool = False,
  alone: bool = False,
) -> Method:
  r"""OPD without the responses that the teacher likes least, on tokens where it is sure and the student is not.

      loss = Σ_kept PPO( w_t A_t ) / tokens kept,      w_t ∝ (1 + α (1 - H_T / max H_T)) (1 + β H_S / max H_S)

  arXiv:2606.02684; w has mean one in every response (eq. 8), a response's score is its mean log q(y_t). A dropped
  response leaves numerator and denominator. Quantile and maxima are of the whole batch, as the paper has them. Its
  released scripts take them of micro-batches of one response, which drops nothing: `alone`.

  Args:
    drop: the fraction of responses that is left out, rounded down; the paper saw a peak at 0.2 (0.1: 58.5, 0.2: 60.8,
      0.3: 58.8).
    teacher, student: α and β.
    clip: of the ratio; it acts from the second update of a batch on.
    at_random: the control: as many responses are dropped, whatever the teacher thinks of them.
    alone: every response is a batch of its own, as released: no filter, its own maxima, and it counts once.
  """
  ratio = ClippedRatio(low=clip, high=clip)

  def confidence(evidence: Evidence) -> Float[AnyArray, 'B R']:
    every = (evidence.teacher.entropy, evidence.student.entropy, evidence.mask)
    of = lambda *each: weights.confidence(*each, teacher=teacher, student=student)
    if not alone:
      return of(*every)
    return jax.vmap(of)(*(x[:, None] for x in every))[:, 0]

  def counted(evidence: Evidence) -> Float[AnyArray, 'B R']:
    mask = evidence.mask
    if alone:
      return per_sequence(mask)
    score = weights.mean_logp(evidence.teacher.logp, mask)
    if at_random:
      score = jax.random.uniform(evidence.key, score.shape)
    return filtered(mask, weights.quantile_filter(score, mask, drop=drop))

  def weigh(evidence: Evidence) -> WeightedTerms:
    logp = evidence.student.logp
    advantage = confidence(evidence) * advantages.log_ratio(evidence.teacher.logp, logp)
    return (ratio(counted(evidence), advantage=advantage, behaviour_logp=logp),)

  entropy = ScoreRequest(entropy=True)
  return Method(
    rollout=rollouts.student(),
    needs=Requirements(student=entropy, teacher=entropy),
    weigh=weigh,
    claim=Converges(),
    paper='arXiv:2606.02684',
  )
