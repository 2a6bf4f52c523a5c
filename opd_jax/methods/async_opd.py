"""AsyncOPD, arXiv:2606.24143: text of older weights, with the advantage of the present ones."""

from opd_jax import rollouts
from opd_jax.claims import Claim, Nothing, Unbiased
from opd_jax.losses import advantages
from opd_jax.losses.divergences import ReverseKL
from opd_jax.losses.normalisers import per_token
from opd_jax.losses.terms import ClippedRatio, ImportanceRatio
from opd_jax.method import Evidence, Method, WeightedTerms

VARIANTS = {
  'present, clipped': {'clip': 0.2},
  'old': {'present': False},
  'old, clipped': {'present': False, 'clip': 0.2},
}


def async_opd(*, present: bool = True, clip: float | None = None) -> Method:
  r"""The advantage is taken anew from the student that learns, and no ratio is clipped.

      loss = -Σ_t ρ_t sg[(log q - log p)(y_t)] / tokens,      ρ_t = p(y_t) / behaviour(y_t)

  arXiv:2606.24143. Over the text's writer the expectation is the gradient of reverse KL at its prefixes, however old
  it is. `old` takes log q - log behaviour, which subtracts the gradient of KL(p ‖ behaviour): the student is driven
  away from the writer. In the paper AIME24 falls by 0.69 points for each doubling of the age (present, clipped: 1.64;
  old, clipped: 1.44; old: 3.99). Text here is stale by `Stage.staleness`, `Stage.updates` and
  `Stage.minibatches`; without it is OPD.

  Args:
    present: False takes the advantage from the log-probabilities under which the text was drawn.
    clip: of the ratio, as PPO has it; None leaves it free.
  """
  if clip is not None and not clip > 0:
    raise ValueError(f'async_opd: clip must be above 0, or None for a free ratio; got {clip}.')
  ratio = ImportanceRatio() if clip is None else ClippedRatio(low=clip, high=clip)

  def weigh(evidence: Evidence) -> WeightedTerms:
    drawn = evidence.rollout.behaviour_logp
    own = evidence.student.logp if present else drawn
    gap = advantages.log_ratio(evidence.teacher.logp, own)
    return (ratio(per_token(evidence.mask), advantage=gap, behaviour_logp=drawn),)

  claim: Claim = Unbiased(divergence=ReverseKL())
  if not present or clip is not None:
    claim = Nothing('biased as soon as the text is older than the student; until then it is OPD')
  return Method(
    rollout=rollouts.student(),
    weigh=weigh,
    claim=claim,
    reweigh=present,
    paper='arXiv:2606.24143',
  )
