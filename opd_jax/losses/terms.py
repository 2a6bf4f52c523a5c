r"""Floor 1. The few differentiable losses of one position. What a method is made of: Σ coefficient · term.

A term is static (it hashes, it is part of the program); its coefficient and inputs are arrays. Whatever does not
need the *present* student's gradient belongs into the coefficient.
"""

import dataclasses
from collections.abc import Mapping
from typing import ClassVar

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from opd_jax.losses.divergences import Divergence
from opd_jax.losses.supports import Support
from opd_jax.types import AnyArray

Inputs = Mapping[str, AnyArray]


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True, kw_only=True)
class Term:
  """A loss of one position. `reads` names the inputs it wants besides its coefficient."""

  reads: ClassVar[tuple[str, ...]] = ()

  @property
  def name(self) -> str:
    fields = ', '.join(
      f'{field.name}={getattr(self, field.name)}' for field in dataclasses.fields(self)
    )
    return f'{type(self).__name__}({fields})'


class OnToken(Term):
  """A term of the log-probability of the written token."""

  def value(self, logp: Float[Array, '*N'], inputs: Inputs) -> Float[Array, '*N']:
    raise NotImplementedError


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True, kw_only=True)
class PolicyGradient(OnToken):
  def value(self, logp, inputs):
    return -logp


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True, kw_only=True)
class Likelihood(OnToken):
  def value(self, logp, inputs):
    return -logp


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True, kw_only=True)
class ClippedRatio(OnToken):
  low: float
  high: float
  dual: float | None

  reads = ('advantage', 'behaviour_logp')

  def value(self, logp, inputs):
    advantage = inputs['advantage']
    ratio = jnp.exp(logp - inputs['behaviour_logp'])
    clipped = jnp.clip(ratio, 1 - self.low, 1 + self.high)
    loss = -jnp.minimum(ratio * advantage, clipped * advantage)
    if self.dual is None:
      return loss
    return jnp.where(advantage < 0, jnp.minimum(loss, -self.dual * advantage), loss)


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True, kw_only=True)
class ImportanceRatio(OnToken):
  reads = ('advantage', 'behaviour_logp')

  def value(self, logp, inputs):
    return -jnp.exp(logp - inputs['behaviour_logp']) * inputs['advantage']


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True, kw_only=True)
class K2(OnToken):
  reads = ('teacher_logp',)

  def value(self, logp, inputs):
    return 0.5 * jnp.square(logp - inputs['teacher_logp'])


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True, kw_only=True)
class K3(OnToken):
  reads = ('teacher_logp',)

  def value(self, logp, inputs):
    gap = inputs['teacher_logp'] - logp
    return jnp.expm1(gap) - gap


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True, kw_only=True)
class OnSupport(Term):
  """A divergence over a support; `most` holds the value of a position below a bound, and then has no gradient."""

  divergence: Divergence
  support: Support
  most: float | None = None

  @property
  def name(self) -> str:
    bound = '' if self.most is None else f', at most {self.most:g} a token'
    return f'{self.divergence.name} on {self.support.name}{bound}'


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True, kw_only=True)
class HiddenDistance(Term):
  reads = ('hidden',)

  def value(self, hidden: Float[Array, '*N D'], inputs: Inputs) -> Float[Array, '*N']:
    wide = jnp.promote_types(jnp.float32, hidden.dtype)
    return jnp.mean(jnp.square(hidden.astype(wide) - inputs['hidden'].astype(wide)), axis=-1)


def policy_gradient() -> Term:
  """-log p(y). The coefficient carries the advantage: Σ coefficient · term is then REINFORCE."""
  return PolicyGradient()


def likelihood() -> Term:
  """-log p(y), as a likelihood: the coefficient is a weight."""
  return Likelihood()


def clipped_ratio(*, low: float = 0.2, high: float = 0.2, dual: float | None = None) -> Term:
  """PPO's -min(ρ A, clip(ρ, 1 - low, 1 + high) A), ρ = p(y) / behaviour. Inputs: advantage, behaviour_logp.

  With one update per batch ρ = 1 and the gradient is that of `policy_gradient`.

  Args:
    dual: where A < 0, the loss is at most -dual · A (dual clip); None leaves it.
  """
  if low < 0 or high < 0 or (dual is not None and dual <= 1):
    raise ValueError(
      f'clipped_ratio: low and high must not be negative, dual above 1; got {low}, {high}, {dual}.'
    )
  return ClippedRatio(low=low, high=high, dual=dual)


def importance_ratio() -> Term:
  """-ρ A without a clip, ρ = p(y) / behaviour. Inputs: advantage, behaviour_logp."""
  return ImportanceRatio()


def divergence(
  divergence: Divergence, support: Support, *, most_per_token: float | None = None
) -> Term:
  """A divergence on a support.

  Args:
    most_per_token: a position whose value is above this bound counts with the bound, without a gradient.
  """
  support.check(divergence)
  return OnSupport(divergence=divergence, support=support, most=most_per_token)


def k2() -> Term:
  """½ (log p - log q)² as a direct loss: on-policy its expected gradient is that of reverse KL. Input: teacher_logp."""
  return K2()


def k3() -> Term:
  """u - 1 - log u as a direct loss: on-policy its expected gradient is that of *forward* KL. Input: teacher_logp."""
  return K3()


def hidden_distance() -> Term:
  """Mean squared distance of the states that predict the token. Input: hidden [B, R, D]; widths must agree."""
  return HiddenDistance()
