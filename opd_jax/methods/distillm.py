"""DistiLLM, arXiv:2402.03898: a KL to a mixture that the student is a part of, so it is bounded."""

from opd_jax import rollouts
from opd_jax.claims import Nothing, Unbiased
from opd_jax.losses.divergences import Divergence, ReverseKL, SkewForward, SkewReverse
from opd_jax.losses.normalisers import per_token
from opd_jax.losses.supports import FULL, Support
from opd_jax.losses.terms import DivergenceTerm
from opd_jax.method import Evidence, Method, WeightedTerms, required_by
from opd_jax.ramps import Number, Stepped

# The student writes a tenth of the rows more whenever the loss has risen.
RISING = Stepped(name='data_fraction', begin=1.0, end=0.0, by=0.1, metric='loss', rises=True)
VARIANTS = {
  'skew forward': {'divergence': SkewForward()},
  'without skew': {'divergence': ReverseKL()},
  'on-policy': {'data': 0.0},
  'off-policy': {'data': 1.0},
  'adaptive': {'data': RISING},
}


def distillm(
  *,
  divergence: Divergence = SkewReverse(),
  data: Number = 0.5,
  support: Support = FULL,
) -> Method:
  r"""A skew KL over whole distributions, on a mixture of the student's own text and a data set's.

      skew reverse: KL(p ‖ α p + (1 - α) q),   skew forward: KL(q ‖ α q + (1 - α) p),      loss = Σ_t D / tokens

  arXiv:2402.03898, α = 0.1. A token that the teacher rejects costs at most -log α = 2.3 nats. Departs: the fraction is
  fixed unless it is told to move, and there is no replay: the student writes its rows anew in every step. The released
  code begins with given text alone and lets the student write a tenth more whenever the loss on held-out text has
  risen, `adaptive` (experiments/recipes/distillm_adaptive.gin looks at held-out text); it reuses earlier text of the
  student more and more, which is where its speed comes from.

  Args:
    divergence: D, `SkewReverse` or `SkewForward`.
    data: of the rows, those of the data set; the student writes the others. A `Stepped` follows a metric.
    support: where D is taken; a teacher's top k asks for far less than its hidden states.
  """
  term = DivergenceTerm(divergence=divergence, support=support)

  def weigh(evidence: Evidence) -> WeightedTerms:
    return (term(per_token(evidence.mask)),)

  claim = Unbiased(divergence=divergence)
  if support != FULL:
    claim = Nothing('entries outside the support are not compared')
  return Method(
    rollout=rollouts.RolloutMix(data=data),
    needs=required_by(term),
    weigh=weigh,
    claim=claim,
    paper='arXiv:2402.03898',
  )
