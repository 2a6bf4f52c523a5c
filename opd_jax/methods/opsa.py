"""OPSA, arXiv:2608.31046: no teacher; the student's least likely tokens become less likely."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from opd_jax import rollouts
from opd_jax.claims import Nothing
from opd_jax.losses import selectors
from opd_jax.losses.normalisers import per_sequence
from opd_jax.losses.terms import PolicyGradient
from opd_jax.method import Evidence, Method, Requirements, WeightedTerms
from opd_jax.types import AnyArray, ScoreRequest

VARIANTS = {
  'fixed negative': {'fixed': -0.5},
  'fixed positive': {'fixed': 0.2},
  'random': {'at_random': True},
  'random and fixed': {'at_random': True, 'fixed': -0.5},
}


def opsa(
  *,
  fraction: float = 0.2,
  sure: float = -0.5,
  unsure: float = -1.0,
  fixed: float | None = None,
  at_random: bool = False,
) -> Method:
  r"""A control without a teacher: the fifth of the tokens that the student found least likely is pushed down.

      A_t = -1/2 - (H_t - min H) / (2 (max H - min H)) on the chosen tokens,      loss = mean_i mean_t -A_t log p(y_t)

  arXiv:2608.31046; H is the student's entropy, its extremes are those of the chosen tokens, and where they agree A is
  -1. In its tables this beats OPD, so what OPD gains need not come from the teacher. A response counts once, as in the
  released code. Departs: tokens are chosen among the whole batch and their number is rounded up; the code chooses on
  every device by itself, and rounds down.

  Args:
    fraction: of the batch's tokens.
    sure, unsure: A where H is smallest and largest.
    fixed: A of every chosen token instead; 0.2 is the paper's positive control, under which responses collapse.
    at_random: the control: as many tokens, drawn.
  """
  if not 0 < fraction <= 1 or fixed == 0 or not unsure <= sure < 0:
    raise ValueError(
      'opsa: fraction must lie above 0 and at most at 1, fixed not be 0, unsure not above sure and both negative; got '
      f'{fraction}, {fixed}, {unsure}, {sure}.'
    )

  def by_entropy(entropy: Float[AnyArray, 'B R'], kept: Bool[AnyArray, 'B R']) -> Array:
    lowest = jnp.where(kept, entropy, jnp.inf).min()
    spread = jnp.where(kept, entropy, -jnp.inf).max() - lowest
    even = ~(spread > 0)
    part = jnp.where(even, 1.0, (entropy - lowest) / jnp.where(even, 1.0, spread))
    return jnp.where(kept, sure + (unsure - sure) * part, 0.0)

  def weigh(evidence: Evidence) -> WeightedTerms:
    mask, logp = evidence.rollout.mask, evidence.student.logp
    score = jax.random.uniform(evidence.key, mask.shape) if at_random else -logp
    row = evidence.rollout.prompt.row
    kept = selectors.best_of_the_batch(score, mask, row, fraction=fraction)
    if fixed is not None:
      return (PolicyGradient()(per_sequence(kept) * fixed),)
    return (PolicyGradient()(per_sequence(kept) * by_entropy(evidence.student.entropy, kept)),)

  return Method(
    rollout=rollouts.student(),
    needs=Requirements(student=ScoreRequest(entropy=fixed is None)),
    weigh=weigh,
    claim=Nothing('there is no teacher'),
    paper='arXiv:2608.31046',
  )
