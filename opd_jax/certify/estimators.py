"""Floor 5. What is certified besides the methods: unbiased estimators, the field's public mistakes, and terms."""

import functools
from collections.abc import Iterator
from typing import NamedTuple

import jax
import jax.numpy as jnp

from opd_jax.certify.bigram import Gradient
from opd_jax.certify.gradients import by_advantage, by_term
from opd_jax.losses import advantages
from opd_jax.losses.divergences import (
  Alpha,
  ClampedPerEntry,
  Divergence,
  ForwardKL,
  Hellinger,
  Jeffreys,
  JensenShannon,
  Neyman,
  Pearson,
  ReverseKL,
  SkewForward,
  SkewReverse,
  TotalVariation,
)
from opd_jax.losses.rest_rules import Renormalised, RestRule, Tail, TeacherOnly, Unclosed
from opd_jax.losses.supports import FULL, Columns, Entries, StudentTopK, Support, TeacherTopK
from opd_jax.losses.terms import (
  K2,
  K3,
  Candidates,
  ClippedCandidates,
  ClippedRatio,
  DivergenceTerm,
  HiddenDistance,
  ImportanceRatio,
  Likelihood,
  PolicyGradient,
  Term,
  TruncatedRatio,
)


class Estimator(NamedTuple):
  """A gradient and the divergence it is an unbiased estimate of."""

  kind: str  # 'estimator': from sampled tokens; 'exact': from whole distributions
  name: str
  divergence: Divergence
  gradient: Gradient


ALL_DIVERGENCES = (
  ForwardKL(), ReverseKL(), JensenShannon(beta=0.5), JensenShannon(beta=0.1), Jeffreys(),
  SkewForward(alpha=0.1), SkewReverse(alpha=0.1), Alpha(alpha=0.5), Pearson(), Neyman(),
  TotalVariation(), Hellinger(),
)  # fmt: skip


def whole(divergence: Divergence) -> Gradient:
  """Returns the gradient of a divergence over the whole vocabulary."""
  return by_term(DivergenceTerm(divergence=divergence, support=FULL))


def estimators() -> Iterator[Estimator]:
  """Yields the unbiased estimators."""
  yield Estimator('estimator', 'k2 as a loss', ReverseKL(), by_term(K2()))
  yield Estimator('estimator', 'k3 as a loss', ForwardKL(), by_term(K3()))
  for each in ALL_DIVERGENCES:
    sampled = by_advantage(functools.partial(advantages.corrected, each))
    yield Estimator('exact', f'{each.name}: whole vocabulary', each, whole(each))
    yield Estimator('estimator', f'{each.name}: corrected advantage', each, sampled)


def student_top(divergence: Divergence, k: int, rest: RestRule) -> Gradient:
  """Returns the gradient of a divergence on the student's top k."""
  support = Support(entries=StudentTopK(k), rest=rest)
  return by_term(DivergenceTerm(divergence=divergence, support=support))


def kept_mass(log_p, log_q):
  """The student's mass on its top 2."""
  del log_q
  return jnp.exp(jax.lax.top_k(log_p, 2)[0]).sum(axis=-1)


def detached_jsd(log_p, log_q):
  """A Jensen-Shannon divergence whose weights p have no gradient."""
  fixed = jax.lax.stop_gradient(log_p)
  log_m = jnp.logaddexp(fixed, log_q) - jnp.log(2.0)
  return 0.5 * (jnp.exp(fixed) * (log_p - log_m)).sum(axis=-1) + 0.5 * (
    jnp.exp(log_q) * (log_q - log_m)
  ).sum(axis=-1)


def checked_terms() -> tuple[tuple[str, Term], ...]:
  """One of every kind of term, for finite differences."""
  forward, half = ForwardKL(), JensenShannon(beta=0.5)
  on = lambda divergence, entries, rest: DivergenceTerm(
    divergence=divergence, support=Support(entries=entries, rest=rest)
  )
  full = functools.partial(DivergenceTerm, support=FULL)
  both = TeacherTopK(2), StudentTopK(2)
  sides: tuple[Entries, ...] = (both[0] | both[1], both[1], both[0] & both[1])
  ratio = TruncatedRatio(max=1.5)
  plain: tuple[Term, ...] = (
    PolicyGradient(), Likelihood(), ClippedRatio(dual=3.0), ImportanceRatio(), K2(), K3(),
    HiddenDistance(), Candidates(), ClippedCandidates(clip=ClippedRatio(dual=3.0)),
  )  # fmt: skip
  divergences = (
    *(full(divergence=each) for each in ALL_DIVERGENCES),
    *(
      on(forward, TeacherTopK(3), rest)
      for rest in (Tail(), Renormalised(), TeacherOnly(), Unclosed())
    ),
    *(on(half, side, Tail()) for side in sides),
    on(half, sides[0], Renormalised()),
    on(ReverseKL(), Columns((0, 3)), Tail()),
    full(divergence=ClampedPerEntry(inner=forward, max=0.05)),
    full(divergence=forward, max_per_token=0.5),
    full(divergence=half, temperature=0.7),
    full(divergence=ReverseKL(), of='reference'),
    full(divergence=half, ratio=ratio),
    full(divergence=forward, of='reference', temperature=2.0, ratio=ratio),
  )
  return (
    *((type(term).__name__, term) for term in plain),
    *((term.name, term) for term in divergences),
  )
