"""Floor 5. What is certified besides the methods: estimators that are right, the field's public mistakes, and terms."""

import functools
from collections.abc import Iterator
from typing import NamedTuple

import jax
import jax.numpy as jnp

from opd_jax.certify.bigram import Gradient, by_advantage, by_term
from opd_jax.losses import advantages, divergences, supports, terms
from opd_jax.losses.divergences import Divergence
from opd_jax.losses.terms import OnSupport, Term

K = 3  # what a top k is cut to in this world


class Estimator(NamedTuple):
  """A gradient and the divergence it is an unbiased estimate of."""

  kind: str  # 'estimator': from sampled tokens; 'exact': from whole distributions
  name: str
  descends: Divergence
  gradient: Gradient


ALL_DIVERGENCES = (
  divergences.forward_kl(), divergences.reverse_kl(), divergences.jensen_shannon(beta=0.5),
  divergences.jensen_shannon(beta=0.1), divergences.jeffreys(), divergences.skew_forward(alpha=0.1),
  divergences.skew_reverse(alpha=0.1), divergences.alpha_family(alpha=0.5), divergences.pearson(),
  divergences.neyman(), divergences.total_variation(), divergences.hellinger(),
)  # fmt: skip


def _corrected(divergence: Divergence) -> Gradient:
  return by_advantage(functools.partial(advantages.corrected, divergence))


def estimators() -> Iterator[Estimator]:
  """Those that are right."""
  yield Estimator('estimator', 'k2 as a loss', divergences.reverse_kl(), by_term(terms.k2()))
  yield Estimator('estimator', 'k3 as a loss', divergences.forward_kl(), by_term(terms.k3()))
  for each in ALL_DIVERGENCES:
    whole = by_term(terms.divergence(each, supports.full()))
    yield Estimator('exact', f'{each.name}: whole vocabulary', each, whole)
    yield Estimator('estimator', f'{each.name}: corrected advantage', each, _corrected(each))


def student_top(divergence: Divergence, k: int, close) -> Gradient:
  return by_term(terms.divergence(divergence, supports.student_top_k(k, close=close)))


def kept_mass(log_p, log_q):
  return jnp.exp(jax.lax.top_k(log_p, 2)[0]).sum(axis=-1)


def detached_jsd(log_p, log_q):
  fixed = jax.lax.stop_gradient(log_p)
  log_m = jnp.logaddexp(fixed, log_q) - jnp.log(2.0)
  return 0.5 * (jnp.exp(fixed) * (log_p - log_m)).sum(axis=-1) + 0.5 * (
    jnp.exp(log_q) * (log_q - log_m)
  ).sum(axis=-1)


def checked_terms() -> tuple[tuple[str, Term], ...]:
  """One of every kind of term, for finite differences."""
  top = lambda close: supports.teacher_top_k(K, close=close())
  closings = supports.tail, supports.renorm, supports.teacher_only, supports.raw
  found: list[Term] = [terms.policy_gradient(), terms.likelihood(), terms.clipped_ratio(dual=3.0)]
  found += [terms.importance_ratio(), terms.k2(), terms.k3(), terms.hidden_distance()]
  found += [terms.divergence(each, supports.full()) for each in ALL_DIVERGENCES]
  found += [terms.divergence(divergences.forward_kl(), top(close)) for close in closings]
  sides = supports.union_top_k, supports.student_top_k, supports.intersection_top_k
  found += [
    terms.divergence(divergences.jensen_shannon(beta=0.5), side(2, close=supports.tail()))
    for side in sides
  ]
  found += [
    terms.divergence(
      divergences.jensen_shannon(beta=0.5), supports.union_top_k(2, close=supports.renorm())
    )
  ]
  found += [
    terms.divergence(divergences.reverse_kl(), supports.columns((0, 3), close=supports.tail()))
  ]
  found += [
    terms.divergence(
      divergences.clamped_per_entry(divergences.forward_kl(), most=0.05), supports.full()
    )
  ]
  found += [terms.divergence(divergences.forward_kl(), supports.full(), most_per_token=0.5)]
  return tuple(
    (term.name if isinstance(term, OnSupport) else term.name.split('(')[0], term) for term in found
  )
