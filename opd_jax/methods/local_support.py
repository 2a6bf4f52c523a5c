"""Local support matching, arXiv:2603.25562: the reverse KL on what the teacher finds likely."""

import jax.numpy as jnp

from opd_jax import rollouts
from opd_jax.claims import Nothing
from opd_jax.losses import selectors
from opd_jax.losses.divergences import BoundedReverseKL, ReverseKL
from opd_jax.losses.normalisers import per_token
from opd_jax.losses.rest_rules import Renormalised
from opd_jax.losses.supports import Support, TeacherTopK
from opd_jax.losses.terms import DivergenceTerm
from opd_jax.method import Evidence, Method, Requirements, WeightedTerms, required_by
from opd_jax.types import ScoreRequest

VARIANTS = {
  'bounded': {'bound': 5.0},
  'entropy': {'fraction': 0.2},
  'random': {'fraction': 0.2, 'by': 'random'},
}


def local_support(
  *,
  k: int = 32,
  bound: float | None = None,
  ignored: tuple[int, ...] = (),
  fraction: float = 1.0,
  by: str = 'entropy',
) -> Method:
  r"""Reverse KL between both models renormalised on the teacher's best k tokens.

      loss = Σ_t KL(p / Σ_S p ‖ q / Σ_S q) / tokens,      S the teacher's best 32

  arXiv:2603.25562 as its scripts are set: renormalised, no bound, every token. The student writes with top-p 0.9 in the
  paper, which is a rule of sampling. Departs: without the option that adds the written token to S.

  Args:
    k: entries of S.
    bound: log(p / q) of an entry is held within ±bound; None leaves it. The code has 5.
    ignored: ids of special tokens; a position where one was written does not count.
    fraction: of each response's tokens that count: those where the student's entropy is highest.
    by: 'entropy', or 'random' for as many tokens drawn at random.
  """
  if by not in ('entropy', 'random'):
    raise ValueError(f"local_support: by is 'entropy' or 'random', got {by!r}.")
  divergence = ReverseKL() if bound is None else BoundedReverseKL(bound=bound)
  support = Support(entries=TeacherTopK(k), rest=Renormalised())
  term, some = DivergenceTerm(divergence=divergence, support=support), fraction < 1.0
  asked = Requirements(student=ScoreRequest(entropy=some and by == 'entropy'))

  def weigh(evidence: Evidence) -> WeightedTerms:
    special = (evidence.rollout.response[..., None] == jnp.asarray(ignored, int)).any(axis=-1)
    mask = evidence.mask & ~special
    if some and by == 'entropy':
      mask = selectors.top_fraction(evidence.student.entropy, mask, fraction=fraction) > 0
    elif some:
      mask = selectors.random_mask(evidence.key, mask, fraction=fraction) > 0
    return (term(per_token(mask)),)

  return Method(
    rollout=rollouts.student(),
    needs=required_by(term) | asked,
    weigh=weigh,
    claim=Nothing("entries outside the teacher's best are not compared"),
    paper='arXiv:2603.25562',
  )
