"""SCOPE, arXiv:2604.10688: correct responses teach by themselves, wrong ones through the teacher."""

from opd_jax import rollouts
from opd_jax.claims import Nothing
from opd_jax.losses import advantages, weights
from opd_jax.losses.normalisers import per_token
from opd_jax.losses.terms import ClippedRatio, Likelihood
from opd_jax.method import Evidence, Method, WeightedTerms

VARIANTS = {
  'as released': {'surprising': False},
  'even': {'temperature': float('inf')},
}


def scope(*, temperature: float = 1.0, surprising: bool = True, clip: float = 0.2) -> Method:
  r"""Two paths by outcome, each weighed within the question's group.

      right:  -w_i log p(y_t) / tokens that are right,      w ∝ PPL_p(y_i)^(1/τ)
      wrong:  PPO( w_i (log q - log p)(y_t) ) / tokens,     w ∝ PPL_q(y_i)^(-1/τ)

  arXiv:2604.10688, τ = 1; PPL is the exponential of minus the mean log-probability of a token. Both weights have mean
  one over their rows of a group, and the divisions are those of the released code, where the paper sums. A response
  that nobody verified is in neither path.

  Args:
    temperature: τ; infinite ones weigh all rows of a path alike.
    surprising: correct responses count more where the student finds them surprising, as paper and README say. The
      released settings have the sign the other way: False.
    clip: of the ratio; it acts from the second update of a batch on.
  """
  ratio, sign = ClippedRatio(low=clip, high=clip), -1.0 if surprising else 1.0

  def weigh(evidence: Evidence) -> WeightedTerms:
    rollout, known = evidence.rollout, evidence.mask
    group, logp = rollout.prompt.group, evidence.student.logp
    right, wrong = weights.right(rollout.reward), weights.wrong(rollout.reward)
    own = sign * weights.mean_logp(logp, rollout.mask)
    exploited = weights.group_softmax(own, group, right, rollout.mask, temperature=temperature)
    others = weights.mean_logp(evidence.teacher.logp, known)
    corrected = weights.group_softmax(others, group, wrong, known, temperature=temperature)
    counts = per_token(rollout.mask & right[:, None])
    gap = advantages.log_ratio(evidence.teacher.logp, logp)
    return (
      Likelihood()(counts * exploited[:, None]),
      ratio(per_token(known) * corrected[:, None], advantage=gap, behaviour_logp=logp),
    )

  return Method(
    rollout=rollouts.student(),
    weigh=weigh,
    claim=Nothing('correct responses are reinforced, whatever the teacher thinks of them'),
    paper='arXiv:2604.10688',
  )
