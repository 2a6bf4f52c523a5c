"""The multi-teacher OPD of MiMo, arXiv:2606.30406 (not the multi-rollout one, arXiv:2605.12652)."""

from opd_jax import rollouts
from opd_jax.claims import Claim, Converges, Nothing
from opd_jax.losses import advantages
from opd_jax.losses.divergences import ReverseKL
from opd_jax.losses.normalisers import per_sequence
from opd_jax.losses.rest_rules import Centred
from opd_jax.losses.supports import Support, TeacherTopK
from opd_jax.losses.terms import DivergenceTerm, PolicyGradient
from opd_jax.method import Evidence, Method, Requirements, WeightedTerms, required_by

VARIANTS = {'top k': {'top': True}}


def mimo_opd(*, top: bool = False, k: int = 64, bound: float = 5.0) -> Method:
  r"""One teacher for every domain of prompts; a sampled advantage that is held, or the teacher's top k.

      policy gradient  -clip(log q - log p, ±5)(y_t) log p(y_t)        top k  Σ_{v ∈ S} p log(p / q) - p + q

  arXiv:2606.30406, the mean over each response's tokens, S the teacher's best 64; -p + q take away what the truncated
  sum would do to the mass on S. Which teacher scores a prompt says its route: bind the judge `teacher` to
  `judges.routed`. The paper finds the first form better, and the second to collapse under a teacher of another origin.

  Args:
    top: the second form.
    k: entries of S.
    bound: of the advantage of the first form.
  """
  if not bound > 0:
    raise ValueError(f'mimo_opd: bound must be above 0, got {bound}.')
  support = Support(entries=TeacherTopK(k), rest=Centred())
  term = DivergenceTerm(divergence=ReverseKL(), support=support)

  def sampled(evidence: Evidence) -> WeightedTerms:
    gap = advantages.log_ratio(evidence.teacher.logp, evidence.student.logp)
    advantage = advantages.clipped(gap, min=-bound, max=bound)
    return (PolicyGradient()(per_sequence(evidence.mask) * advantage),)

  def on_top(evidence: Evidence) -> WeightedTerms:
    return (term(per_sequence(evidence.mask)),)

  claim: Claim = Nothing('entries outside the top k are not compared') if top else Converges()
  return Method(
    rollout=rollouts.student(),
    needs=required_by(term) if top else Requirements(),
    weigh=on_top if top else sampled,
    claim=claim,
    paper='arXiv:2606.30406',
  )
