"""TRB, arXiv:2605.31159: the student writes as the teacher would, as far as that is close to how it writes itself."""

from opd_jax import rollouts
from opd_jax.claims import Nothing
from opd_jax.losses.divergences import ReverseKL
from opd_jax.losses.normalisers import per_token
from opd_jax.losses.rest_rules import PerCandidate
from opd_jax.losses.supports import StudentTopK, Support
from opd_jax.losses.terms import DivergenceTerm
from opd_jax.method import Evidence, Method, WeightedTerms, required_by

VARIANTS = {
  'no blending': {'blended': False},
}


def trb(*, k: int = 16, blended: bool = True) -> Method:
  r"""The loss of `rethinking_opd`, on text by the teacher-most distribution that is close to the student's.

      μ_b ∝ p^(1-b) q^b,      b the largest in [0, 1] with KL(μ_b ‖ p) ≤ ε,      ε = ε_0 (1 - step / K), then 0
      loss = -Σ_t Σ_{v ∈ S} w_v (log q(v) - log p(v)) ρ_v / tokens,      w = p / Σ_S p,      S the student's best k

  arXiv:2605.31159. Nothing corrects for who wrote. The experiment binds the rule `guided.TrustRegion` with ε as a
  `Ramp`; a plain number is the paper's fixed ε. Departs: both models have one vocabulary, so their end tokens are not
  merged.

  Args:
    k: candidates; the text is scored anew, so they are of the student that learns.
    blended: whether decoding rules may read the teacher while the student writes.
  """
  support = Support(entries=StudentTopK(k), rest=PerCandidate(weight='student'))
  term = DivergenceTerm(divergence=ReverseKL(), support=support)

  def weigh(evidence: Evidence) -> WeightedTerms:
    return (term(per_token(evidence.mask)),)

  return Method(
    rollout=rollouts.student(beside='teacher' if blended else None),
    needs=required_by(term),
    weigh=weigh,
    claim=Nothing('tokens that are no candidates are not compared'),
    paper='arXiv:2605.31159',
  )
