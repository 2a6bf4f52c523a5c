"""Asymmetric on-policy distillation, arXiv:2605.06387, with its gates."""

from collections.abc import Callable

import jax.numpy as jnp
from jaxtyping import Bool

from opd_jax import rollouts
from opd_jax.losses import advantages, divergences, supports, terms
from opd_jax.losses.divergences import Divergence
from opd_jax.losses.normalisers import per_sequence
from opd_jax.losses.supports import RestRule
from opd_jax.losses.vocabulary import WeightedTerm
from opd_jax.method import Evidence, Method, WeightedTerms, needs_of
from opd_jax.types import AnyArray

Gate = Callable[[Evidence], Bool[AnyArray, 'B R']]


def below(*, delta: float = 0.0) -> Gate:
  """Where q(y) - p(y) ≤ δ, as probabilities (eq. 9). δ < -1 never intervenes, δ = 1 always."""
  return lambda e: jnp.exp(e.teacher.logp) - jnp.exp(e.student.logp) <= delta


def zero(*, tolerance: float = 1e-6) -> Gate:
  """AOPD-Zero: where the advantage is numerically zero. The paper gives no tolerance; this one is for float32."""
  return lambda e: jnp.abs(e.teacher.logp - e.student.logp) <= tolerance


def below_where_wrong(*, delta: float = 0.0) -> Gate:
  """The accuracy filter: `below`, and only in responses that a verifier gave no reward."""
  inner = below(delta=delta)
  return lambda e: inner(e) & (e.rollout.reward <= 0)[:, None]


def aopd(
  *,
  intervene: Gate = below(),
  k: int = 32,
  divergence: Divergence = divergences.forward_kl(),
  close: RestRule = supports.renorm(),
) -> Method:
  r"""Exploit where the teacher agrees, imitate where it does not.

      L = mean_i (1 / n_i) Σ_t [ G_t D_t + (1 - G_t) (-A_t log p(y_t)) ],      A_t = log q(y_t) - log p(y_t)

  arXiv:2605.06387, eqs. 9 and 10; D is the forward KL on the teacher's top K. Per *sequence*: a port that divides by
  tokens is another method.

  Args:
    intervene: G, where the divergence takes over: `below`, `zero` or `below_where_wrong`.
    k: entries of the teacher that are compared.
    divergence: D.
    close: how the support is closed. `renorm` normalises both sides, as the paper's appendix says: a sampled token
      outside the support then has no gradient. `teacher_only` pushes it down.
  """
  support = supports.teacher_top_k(k, close=close)
  guide = terms.divergence(divergence, support)

  def weigh(evidence: Evidence) -> WeightedTerms:
    guided = intervene(evidence)
    advantage = advantages.log_ratio(evidence.teacher.logp, evidence.student.logp)
    mean = per_sequence(evidence.rollout.mask)
    return (
      WeightedTerm(guide, mean * guided, {}),
      WeightedTerm(
        terms.policy_gradient(),
        jnp.where(evidence.rollout.mask & ~guided, mean * advantage, 0.0),
        {},
      ),
    )

  return Method(
    rollout=rollouts.student(), needs=needs_of(support), weigh=weigh, paper='arXiv:2605.06387'
  )
