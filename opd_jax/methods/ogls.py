"""OGLS-SD, arXiv:2605.12400: failed responses follow a teacher that is steered by the outcomes of their siblings."""

import jax.numpy as jnp

from opd_jax import rollouts
from opd_jax.claims import Converges, Nothing
from opd_jax.losses import weights
from opd_jax.losses.divergences import ClampedPerEntry, Divergence, ReverseKL
from opd_jax.losses.normalisers import per_token
from opd_jax.losses.supports import FULL
from opd_jax.losses.terms import DivergenceTerm
from opd_jax.method import Evidence, Method, WeightedTerms, required_by

VARIANTS = {'without a clamp': {'bound': None}}


def ogls(
  *, divergence: Divergence = ReverseKL(), bound: float | None = 0.05, first: int | None = 1024
) -> Method:
  r"""The divergence from a steered teacher, on the responses that failed.

      loss = Σ_{i failed} Σ_{t ≤ 1024} Σ_v clip( p log(p / q), ±0.05 ) / their tokens,   q = softmax(z0 + λ (z̄+ - z̄-))

  arXiv:2605.12400; the teacher is `steering.steered`, λ up to 3. The paper prints a plain sum, ours is a mean over
  tokens; a later version is said to take the forward KL: `divergence`. Its two ablations are settings of the judge:
  `failures = False`, and with `strength = 1` the mean of the right attempts.

  Args:
    divergence: of the student from the teacher.
    bound: of every entry of its sum, on both sides; an entry beyond has no gradient. None leaves it.
    first: tokens of a response that are taught; None teaches all of them.
  """
  if bound is not None and not bound > 0:
    raise ValueError(f'ogls: bound must be above 0, got {bound}.')
  held = divergence
  if bound is not None:
    held = ClampedPerEntry(inner=divergence, max=bound, min=-bound)
  term = DivergenceTerm(divergence=held, support=FULL)

  def weigh(evidence: Evidence) -> WeightedTerms:
    mask = evidence.mask & weights.wrong(evidence.rollout.reward)[:, None]
    if first is not None:
      mask = mask & (jnp.arange(mask.shape[1]) < first)
    return (term(per_token(mask)),)

  return Method(
    rollout=rollouts.student(),
    needs=required_by(term),
    weigh=weigh,
    claim=Converges() if bound is None else Nothing('entries beyond the bound have no gradient'),
    paper='arXiv:2605.12400',
  )
