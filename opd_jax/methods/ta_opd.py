"""TA-OPD, arXiv:2605.26844: the few tokens that are worth teaching, with the selectors it is compared with."""

import jax
import jax.numpy as jnp
from jaxtyping import Bool, Float

from opd_jax import rollouts
from opd_jax.claims import Converges, Nothing
from opd_jax.losses import advantages, selectors, weights
from opd_jax.losses.divergences import ForwardKL
from opd_jax.losses.normalisers import per_token
from opd_jax.losses.rest_rules import Renormalised
from opd_jax.losses.supports import StudentTopK, Support, TeacherTopK
from opd_jax.losses.terms import DivergenceTerm, PolicyGradient
from opd_jax.method import Evidence, Method, Requirements, WeightedTerms
from opd_jax.types import AnyArray, ScoreRequest

Tokens = Float[AnyArray, 'B R']
Mask = Bool[AnyArray, 'B R']
SELECTORS = ('teachable', 'entropy', 'divergence', 'compatible', 'tip', 'soft or', 'random')

VARIANTS = {
  'entropy': {'by': 'entropy'},
  'tip': {'by': 'tip'},
  'random': {'by': 'random'},
}


def scores_of(h: Tokens, d: Tokens, c: Tokens) -> dict[str, Tokens]:
  """What a token is worth, from the student's entropy, the disagreement and the compatibility, each in [0, 1]."""
  return {
    'teachable': d * c,
    'entropy': h,
    'divergence': d,
    'compatible': c,
    'tip': h + d - h * d,  # arXiv:2604.14084
    'soft or': h + d * c - h * d * c,
  }


def ta_opd(*, fraction: float = 0.05, k: int = 16, by: str = 'teachable') -> Method:
  r"""OPD on a twentieth of the tokens: where the models disagree, and the student could follow the teacher.

      s_t = norm(D_t) norm(C_t),   D_t = KL(q ‖ p) on the union of both top K,   C_t = Σ_{v in the student's top K} q(v)

  arXiv:2605.26844 in its released code: D of both sides renormalised, norm between the batch's quantiles 0.05 and 0.95,
  the ceil(ρ N) best of the batch's N tokens, and at least one of every response: its best by h + d c - h d c, h the
  student's entropy. Divides by the tokens that are kept, as its formula does; its framework takes a mean per response.

  Args:
    fraction: ρ.
    k: K.
    by: the paper's score, or what it is compared with; 'random' draws as many tokens.
  """
  if by not in SELECTORS:
    raise ValueError(f'ta_opd: by is one of {", ".join(SELECTORS)}; got {by!r}.')
  entries = TeacherTopK(k) | StudentTopK(k)
  disagreement = DivergenceTerm(
    divergence=ForwardKL(), support=Support(entries=entries, rest=Renormalised())
  )

  def kept(evidence: Evidence) -> Mask:
    mask = evidence.mask
    compatible = jnp.exp(evidence.teacher.at_ids.logp).sum(axis=-1)
    parts = evidence.student.entropy, evidence.measures['disagreement'], compatible
    scores = scores_of(*(weights.robust(part, mask) for part in parts))
    scores['random'] = jax.random.uniform(evidence.key, mask.shape)
    row = evidence.rollout.prompt.row
    chosen = selectors.best_of_the_batch(scores[by], mask, row, fraction=fraction)
    spare = scores['random' if by == 'random' else 'soft or']
    best = selectors.top_fraction(spare, mask, fraction=0.0) > 0  # one of every response
    return jnp.where(chosen.any(axis=1, keepdims=True), chosen, best)

  def weigh(evidence: Evidence) -> WeightedTerms:
    gap = advantages.log_ratio(evidence.teacher.logp, evidence.student.logp)
    return (PolicyGradient()(per_token(kept(evidence)) * gap),)

  return Method(
    rollout=rollouts.student(),
    needs=Requirements(
      student=ScoreRequest(entropy=True),
      teacher=ScoreRequest(at_student_top_k=k),
      measures={'disagreement': disagreement},
    ),
    weigh=weigh,
    claim=Converges() if by == 'random' else Nothing('most tokens are not learnt from'),
    paper='arXiv:2605.26844',
  )
