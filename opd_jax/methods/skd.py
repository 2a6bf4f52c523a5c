"""SKD, arXiv:2410.11325: the student writes, and the teacher replaces the tokens that it would hardly write."""

from opd_jax import rollouts
from opd_jax.claims import Unbiased
from opd_jax.losses.divergences import Divergence, ForwardKL, ReverseKL
from opd_jax.losses.normalisers import per_token
from opd_jax.losses.supports import FULL
from opd_jax.losses.terms import DivergenceTerm
from opd_jax.method import Evidence, Method, WeightedTerms, required_by

VARIANTS = {
  'reverse KL': {'divergence': ReverseKL()},
  'no replacement': {'replaced': False},
}


def skd(*, divergence: Divergence = ForwardKL(), replaced: bool = True) -> Method:
  r"""A divergence over whole distributions, on the student's text with its worst tokens replaced.

      μ(v) = p(v) 1[v ∈ S] + q(v) Σ_{u ∉ S} p(u),      S the teacher's best K;      loss = Σ_t D(p_t, q_t) / tokens

  arXiv:2410.11325, as others summarise it: the paper was not at hand, and D and its aggregation are our reading. The
  experiment binds the rule `guided.Replaced` with K (TRB, arXiv:2605.31159, compares 15, 25 and 50). No gradient flows
  through the sampling. Departs: a replacement is drawn at temperature one.

  Args:
    divergence: D.
    replaced: whether decoding rules may read the teacher while the student writes; False is on-policy distillation.
  """
  term = DivergenceTerm(divergence=divergence, support=FULL)

  def weigh(evidence: Evidence) -> WeightedTerms:
    return (term(per_token(evidence.mask)),)

  return Method(
    rollout=rollouts.student(beside='teacher' if replaced else None),
    needs=required_by(term),
    weigh=weigh,
    claim=Unbiased(divergence=divergence),
    paper='arXiv:2410.11325',
  )
