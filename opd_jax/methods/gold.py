"""GOLD, as TRL has it: tokens that both models have are compared by name, the others by rank; chunk by chunk."""

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from opd_jax import rollouts
from opd_jax.claims import Nothing
from opd_jax.losses import chunks
from opd_jax.losses.divergences import Divergence, JensenShannon, TotalVariation
from opd_jax.losses.normalisers import per_token
from opd_jax.losses.terms import EntriesAtIds
from opd_jax.method import Evidence, Method, Requirements, WeightedTerms
from opd_jax.types import ScoreRequest, TopK

NOTHING = -1e4  # log of a probability that is zero in any type
VARIANTS = {'by name alone': {'unmatched': 0.0}}


def by_rank(
  top: TopK, keep: Bool[Array, 'B R C']
) -> tuple[Int[Array, 'B R C'], Float[Array, 'B R C']]:
  """Some of the best entries in front, best first; behind them no entries."""
  order = jnp.argsort(~keep, axis=-1, stable=True)
  pick = lambda x: jnp.take_along_axis(jnp.asarray(x), order, axis=-1)
  kept = pick(keep)
  return jnp.where(kept, pick(top.ids), -1), jnp.where(kept, pick(top.logp), NOTHING)


def gold(
  *,
  divergence: Divergence = JensenShannon(),
  k: int = 64,
  matched: float = 1.0,
  unmatched: float = 1.0,
) -> Method:
  r"""At the last token of each chunk: a divergence on tokens of one name, and ULD on the others.

      loss = Σ_c [ matched Σ_{v in both} D(P_c(v), Q_c(v)) + unmatched Σ_r |P_c(r) - Q_c(r)| ] / chunks
      P_c(v) = p(v) Π p(y_j),  Q_c(v) = q(v) Π q(w_j) over the tokens of c before its last;  r: ranks of the others

  TRL's GOLD trainer with `uld_use_hybrid_loss`, in the reading that it calls bayesian; its default reads each factor
  one position too late. Slices are not renormalised, as released, so matched entries do not close. Departs: D is
  homogeneous, so the student's factors are a coefficient and D(p, Q_c / Π p) a term, and no gradient goes through them;
  the student's own text (TRL: half of it); the best k of both sides (TRL: all), where a token of the student that is
  not among the teacher's best k is unmatched; the end of a response is compared (TRL skips it).

  Args:
    divergence: D; TRL's β = 0.5.
    k: entries of either side.
    matched, unmatched: weights.
  """
  if min(matched, unmatched) < 0 or matched + unmatched == 0 or k < 1:
    raise ValueError(
      f'gold: weights must not be negative nor both 0, k at least 1; got {matched}, {unmatched}, {k}.'
    )
  by_name, ranked = EntriesAtIds(divergence=divergence), EntriesAtIds(divergence=TotalVariation())

  def weigh(evidence: Evidence) -> WeightedTerms:
    chunk, own = evidence.teacher.chunk, jnp.where(evidence.mask, evidence.student.logp, 0.0)
    ends = evidence.mask & chunks.last(chunk)
    before = jnp.where(ends, chunks.sums(own, chunk) - own, 0.0)
    counts, top, mine = (
      per_token(ends) * jnp.exp(before),
      evidence.teacher.top_k,
      evidence.student.top_k,
    )
    named = (top.ids >= 0) & (top.logp > -jnp.inf)
    ids = jnp.where(named, top.ids, -1)
    here = by_name(
      matched * counts, ids=ids, log_q=jnp.where(named, top.logp, NOTHING) - before[..., None]
    )
    if unmatched == 0:
      return (here,)
    shared = (mine.ids[..., :, None] == ids[..., None, :]).any(axis=-1)
    others, _ = by_rank(mine, ~shared)
    _, log_q = by_rank(top, ~named & (top.logp > -jnp.inf))
    there = ranked(2.0 * unmatched * counts, ids=others, log_q=log_q - before[..., None])
    return here, there

  return Method(
    rollout=rollouts.student(),
    needs=Requirements(
      student=ScoreRequest(top_k=k), teacher=ScoreRequest(top_k=k, across='joint')
    ),
    weigh=weigh,
    claim=Nothing('slices of a distribution that are not closed, and ranks without names'),
    paper='TRL, GOLD trainer, 2025',
  )
