"""DistiLLM, arXiv:2402.03898: a KL to a mixture that the student is a part of, so it is bounded."""

from opd_jax import rollouts
from opd_jax.claims import Nothing, Unbiased
from opd_jax.losses.divergences import Divergence, ReverseKL, SkewForward, SkewReverse
from opd_jax.losses.normalisers import per_token
from opd_jax.losses.supports import FULL, Support
from opd_jax.losses.terms import DivergenceTerm
from opd_jax.method import Evidence, Method, WeightedTerms, required_by

VARIANTS = {
  'skew forward': {'divergence': SkewForward()},
  'without skew': {'divergence': ReverseKL()},
  'on-policy': {'student_fraction': 1.0},
  'off-policy': {'student_fraction': 0.0},
}


def distillm(
  *,
  divergence: Divergence = SkewReverse(),
  student_fraction: float = 0.5,
  support: Support = FULL,
) -> Method:
  r"""A skew KL over whole distributions, on a mixture of the student's own text and a data set's.

      skew reverse: KL(p ‖ α p + (1 - α) q),   skew forward: KL(q ‖ α q + (1 - α) p),      loss = Σ_t D / tokens

  arXiv:2402.03898, α = 0.1. A token that the teacher rejects costs at most -log α = 2.3 nats. Departs: the fraction of
  the student's rows is fixed. The released code begins at 0, adds 0.1 whenever the loss on held-out text has risen, and
  reuses earlier text of the student more and more.

  Args:
    divergence: D, `SkewReverse` or `SkewForward`.
    student_fraction: of the rows, those that the student writes.
    support: where D is taken; a teacher's top k asks for far less than its hidden states.
  """
  term = DivergenceTerm(divergence=divergence, support=support)

  def weigh(evidence: Evidence) -> WeightedTerms:
    return (term(per_token(evidence.mask)),)

  claim = Unbiased(divergence=divergence)
  if support != FULL:
    claim = Nothing('entries outside the support are not compared')
  return Method(
    rollout=rollouts.mixture(student=student_fraction),
    needs=required_by(term),
    weigh=weigh,
    claim=claim,
    paper='arXiv:2402.03898',
  )
