"""Rethinking OPD, arXiv:2604.13016: a policy gradient for each of the student's likeliest tokens."""

from opd_jax import rollouts
from opd_jax.claims import Nothing
from opd_jax.losses.divergences import ReverseKL
from opd_jax.losses.normalisers import per_token
from opd_jax.losses.rest_rules import PerCandidate
from opd_jax.losses.supports import Support, best
from opd_jax.losses.terms import DivergenceTerm
from opd_jax.method import Evidence, Method, WeightedTerms, required_by

VARIANTS = {
  'teacher weights': {'weight': 'teacher'},
  'no weights': {'weight': 'none'},
  'only teacher': {'of': 'teacher'},
  'intersection': {'of': 'both'},
  'union': {'of': 'either'},
}


def rethinking_opd(*, k: int = 16, of: str = 'student', weight: str = 'student') -> Method:
  r"""Every one of a few candidates of a position has an advantage of its own, whether it was written or not.

      loss = -Σ_t Σ_{v ∈ S} w_v (log q(v) - log p(v)) ρ_v / tokens,      w = p / Σ_S p,      ρ_v = p(v) / sg p(v)

  arXiv:2604.13016, S the student's best k = 16. The weights are divided by the mass on S, the log-probabilities are
  not. Departs: advantages and weights are those of the present student in every update, so the ratio of a candidate is
  1 and its clip never acts; in the first update of a batch the gradient is the same.

  Args:
    k: candidates of either side.
    of: whose best: 'student', 'teacher', 'both' or 'either'.
    weight: w, of the 'student' or the 'teacher'; 'none' weighs all alike, by one.
  """
  support = Support(entries=best(k, of=of), rest=PerCandidate(weight=weight))
  term = DivergenceTerm(divergence=ReverseKL(), support=support)

  def weigh(evidence: Evidence) -> WeightedTerms:
    return (term(per_token(evidence.mask)),)

  return Method(
    rollout=rollouts.student(),
    needs=required_by(term),
    weigh=weigh,
    claim=Nothing('tokens that are no candidates are not compared'),
    paper='arXiv:2604.13016',
  )
