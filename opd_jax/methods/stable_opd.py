"""StableOPD, arXiv:2604.08527: OPD held near where it began, with complete responses of a data set beside it."""

from opd_jax import rollouts
from opd_jax.claims import Claim, Converges, Nothing
from opd_jax.losses import advantages
from opd_jax.losses.divergences import ReverseKL
from opd_jax.losses.normalisers import per_token
from opd_jax.losses.supports import FULL
from opd_jax.losses.terms import DivergenceTerm, Likelihood, PolicyGradient
from opd_jax.method import Evidence, Method, Requirements, WeightedTerms, required_by
from opd_jax.static import static
from opd_jax.types import DATA

VARIANTS = {
  'reference only': {'golden': 0.0},
  'golden only': {'beta': 0.0},
}


@static
class Between:
  """p ∝ (q r^β)^(1 / (1 + β))."""

  beta: float

  def __call__(self, log_q, log_r):
    return (log_q + self.beta * log_r) / (1 + self.beta)


def _claim(golden: float, beta: float) -> Claim:
  if golden > 0:
    return Nothing('responses of a data set are taught, whatever the teacher thinks of them')
  return Converges(optimum=Between(beta=beta)) if beta > 0 else Converges()


def stable_opd(*, golden: float = 0.25, weight: float = 1.0, beta: float = 0.1) -> Method:
  r"""OPD, likelihood of a data set's responses, and a KL to the student as it was: against ever longer responses.

      own text:     Σ_t [ -d_t log p(y_t) + β KL(p ‖ r)(x, y_<t) ] / tokens,      d_t = (log q - log p)(y_t)
      golden text:  Σ_t -λ log p(y_t) / tokens

  arXiv:2604.08527; r is the reference, the student before training unless the run names another, and the KL is over
  the whole vocabulary, on the student's own text. Golden responses are complete and end by themselves. λ does not move.
  Our sources give neither λ, β nor the share of golden rows: 1, 0.1 and a quarter are ours. Without golden rows it ends
  at p ∝ (q r^β)^(1 / (1 + β)).

  Args:
    golden: the fraction of rows that come from the data set.
    weight: λ.
    beta: β; 0 asks for no reference.
  """
  if beta < 0 or weight < 0:
    raise ValueError(f'stable_opd: beta and weight must not be negative; got {beta}, {weight}.')
  anchor = DivergenceTerm(divergence=ReverseKL(), support=FULL, of='reference')

  def weigh(evidence: Evidence) -> WeightedTerms:
    given = evidence.rollout.writer == DATA
    own = per_token(evidence.mask & ~given)
    gap = advantages.log_ratio(evidence.teacher.logp, evidence.student.logp)
    terms = (PolicyGradient()(own * gap),)
    if golden > 0:
      terms += (Likelihood()(weight * per_token(evidence.rollout.mask & given)),)
    return (*terms, anchor(beta * own)) if beta > 0 else terms

  return Method(
    rollout=rollouts.mixture(student=1.0 - golden),
    needs=required_by(anchor) if beta > 0 else Requirements(),
    weigh=weigh,
    claim=_claim(golden, beta),
    paper='arXiv:2604.08527',
  )
