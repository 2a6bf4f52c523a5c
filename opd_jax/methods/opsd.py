"""OPSD, arXiv:2601.18734: the student is its own teacher, which has seen the solution."""

from opd_jax import rollouts
from opd_jax.claims import Converges, Nothing, Unbiased
from opd_jax.losses.divergences import ClampedPerEntry, Divergence, ForwardKL, JensenShannon
from opd_jax.losses.normalisers import per_token
from opd_jax.losses.supports import FULL, Support
from opd_jax.losses.terms import DivergenceTerm
from opd_jax.method import Evidence, Method, WeightedTerms, required_by

VARIANTS = {
  'first version': {'divergence': JensenShannon()},
  'whole entries': {'divergence': ForwardKL()},
  'both sides': {'divergence': ClampedPerEntry(inner=ForwardKL(), max=0.05, min=-0.05)},
}


def opsd(
  *,
  divergence: Divergence = ClampedPerEntry(inner=ForwardKL(), max=0.05),
  temperature: float = 1.1,
  max_per_token: float | None = None,
  support: Support = FULL,
) -> Method:
  r"""Forward KL to the student that has seen the solution, where no entry counts more than a bound.

      loss = Σ_t Σ_v min( q log(q / p), τ ) / tokens,      p, q at temperature 1.1

  arXiv:2601.18734, third version and its code: τ = 0.05 (0.06 for 8B). The first version has JSD without a bound. The
  bound is one of entries, not of tokens: an entry above it has no gradient, so a position can push the wrong way. For
  p = (0.6, 0.4), q = (0.9, 0.1), τ = 0.05 its value is -0.0886 and not 0.2263. Departs: the mean is of the batch, where
  theirs is of a microbatch. The teacher and what it sees are settings of the judge; the surrogate on the sampled token,
  another option of the code, is `opd`.

  Args:
    divergence: with its bound.
    temperature: both models' logits are divided by it; text is to be drawn at it.
    max_per_token: our option: a position above it has no gradient, instead of an entry.
    support: where the divergence is taken; an option of the code is the teacher's best 50, renormalised.
  """
  term = DivergenceTerm(
    divergence=divergence,
    support=support,
    temperature=temperature,
    max_per_token=max_per_token,
  )

  def weigh(evidence: Evidence) -> WeightedTerms:
    return (term(per_token(evidence.mask)),)

  claim = Converges() if temperature != 1.0 else Unbiased(divergence=divergence)
  if isinstance(divergence, ClampedPerEntry) or max_per_token is not None or support != FULL:
    claim = Nothing('what is above a bound, or outside the support, has no gradient')
  return Method(
    rollout=rollouts.student(),
    needs=required_by(term),
    weigh=weigh,
    claim=claim,
    paper='arXiv:2601.18734',
  )
