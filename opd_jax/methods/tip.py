"""TIP, arXiv:2604.14084: the half of the tokens where the student is unsure or wrong."""

import jax

from opd_jax import rollouts
from opd_jax.claims import Converges, Nothing
from opd_jax.losses import selectors, weights
from opd_jax.losses.divergences import ReverseKL
from opd_jax.losses.normalisers import per_token
from opd_jax.losses.supports import FULL, Support
from opd_jax.losses.terms import DivergenceTerm
from opd_jax.method import Evidence, Method, Requirements, WeightedTerms
from opd_jax.types import ScoreRequest

SELECTORS = ('either', 'entropy', 'divergence', 'random')
VARIANTS = {
  'entropy': {'by': 'entropy'},
  'divergence': {'by': 'divergence'},
  'random': {'by': 'random'},
}


def tip(*, fraction: float = 0.5, by: str = 'either', support: Support = FULL) -> Method:
  r"""Reverse KL on the half of the tokens where the student is unsure, or sure of what the teacher would not write.

      s_t = h_t + e_t - h_t e_t,      loss = mean over the best ρ of all tokens of KL(p ‖ q)

  arXiv:2604.14084, ρ = 0.5; h and e are the student's entropy and KL(p ‖ q), each moved to [0, 1] by the smallest and
  the largest of the batch, so an outlier sets the scale. The released code has the losses, not the choice of tokens.

  Args:
    fraction: ρ.
    by: 'either' is the paper's score, 'entropy' and 'divergence' are its parts; 'random' draws as many tokens.
    support: where the KL is taken.
  """
  if by not in SELECTORS or not 0 < fraction <= 1:
    raise ValueError(
      f'tip: by is one of {", ".join(SELECTORS)} and fraction above 0, at most 1; got {by!r}, {fraction}.'
    )
  term = DivergenceTerm(divergence=ReverseKL(), support=support)

  def weigh(evidence: Evidence) -> WeightedTerms:
    mask = evidence.mask
    unit = lambda x: weights.robust(x, mask, low=0.0, high=1.0)
    h, e = unit(evidence.student.entropy), unit(evidence.measures['gap'])
    drawn = jax.random.uniform(evidence.key, mask.shape)
    score = {'either': h + e - h * e, 'entropy': h, 'divergence': e, 'random': drawn}[by]
    row = evidence.rollout.prompt.row
    return (term(per_token(selectors.best_of_the_batch(score, mask, row, fraction=fraction))),)

  return Method(
    rollout=rollouts.student(),
    needs=Requirements(student=ScoreRequest(entropy=True), measures={'gap': term}),
    weigh=weigh,
    claim=Converges()
    if by == 'random' and support == FULL
    else Nothing('half of the tokens are not learnt from'),
    paper='arXiv:2604.14084',
  )
