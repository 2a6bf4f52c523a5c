"""EOPD, arXiv:2603.07079: where the teacher is unsure, its best tokens are imitated besides."""

from opd_jax import rollouts
from opd_jax.claims import Converges, Nothing
from opd_jax.losses import advantages, selectors
from opd_jax.losses.divergences import ForwardKL
from opd_jax.losses.normalisers import per_token
from opd_jax.losses.rest_rules import Renormalised, RestRule, Tail, Unclosed
from opd_jax.losses.supports import Support, TeacherTopK
from opd_jax.losses.terms import ClippedRatio, DivergenceTerm
from opd_jax.method import Evidence, Method, Requirements, WeightedTerms, required_by
from opd_jax.types import ScoreRequest

VARIANTS = {
  'switch': {'added': False},
  'renormalised': {'rest': Renormalised()},
  'random gate': {'at_random': True},
}


def eopd(
  *,
  threshold: float = 0.8,
  k: int = 16,
  weight: float = 1.0,
  rest: RestRule = Unclosed(),
  added: bool = True,
  at_random: bool = False,
  clip: float = 0.2,
) -> Method:
  r"""OPD, and the forward KL on the teacher's top K where the teacher's entropy is high: it keeps the student diverse.

      loss = (1 / tokens) Σ [ PPO( (log q - log p)(y_t) ) + w 1[H_T > τ] Σ_{v in top K} q log(q / p) ]

  arXiv:2603.07079. The released code adds, with τ = 0.8 nats, and leaves the sum as it is: neither side is divided by
  its mass. Its abstract may be read as a switch: `added=False`. K and w are not known to us, ours are 16 and 1.

  Args:
    threshold: τ, of the entropy over the whole vocabulary.
    k: K.
    weight: w.
    rest: how the top K is closed; unclosed, the gradient of the forward KL lifts its tokens even at agreement.
    added: False leaves the policy gradient out where the forward KL is taken.
    at_random: the control: as many tokens of every response are taken for the teacher's unsure ones, drawn.
    clip: of the ratio; it acts from the second update of a batch on.
  """
  if threshold < 0 or weight < 0:
    raise ValueError(
      f'eopd: threshold and weight must not be negative, got {threshold} and {weight}.'
    )
  ratio = ClippedRatio(low=clip, high=clip)
  guide = DivergenceTerm(divergence=ForwardKL(), support=Support(entries=TeacherTopK(k), rest=rest))

  def weigh(evidence: Evidence) -> WeightedTerms:
    mask, logp = evidence.mask, evidence.student.logp
    unsure = mask & (evidence.teacher.entropy > threshold)
    if at_random:
      unsure = selectors.drawn_like(evidence.key, unsure, mask)
    gap = advantages.log_ratio(evidence.teacher.logp, logp)
    counts = per_token(mask)
    sampled = counts if added else counts * ~unsure
    return ratio(sampled, advantage=gap, behaviour_logp=logp), guide(weight * counts * unsure)

  closed = isinstance(rest, Renormalised | Tail)
  return Method(
    rollout=rollouts.student(),
    needs=Requirements(teacher=ScoreRequest(entropy=True)) | required_by(guide),
    weigh=weigh,
    claim=Converges()
    if added and closed
    else Nothing('where the teacher is unsure, only its top k is compared'),
    paper='arXiv:2603.07079',
  )
