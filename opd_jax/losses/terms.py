r"""Floor 1. The few differentiable losses of one position. What a method is made of: Σ coefficient · term.

A term is static (it hashes, it is part of the program); its coefficient and inputs are arrays. Whatever does not
need the *present* student's gradient belongs into the coefficient. Called with its coefficient and inputs, a term gives
what `weigh` returns:

    PolicyGradient()(per_token(mask) * advantage)
    ClippedRatio(dual=3.0)(per_token(mask), advantage=advantage, behaviour_logp=logp)
"""

import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from opd_jax.losses.divergences import Divergence, Raw
from opd_jax.losses.supports import Support
from opd_jax.static import static
from opd_jax.types import AnyArray

Inputs = Mapping[str, AnyArray]


class Term:
  """A loss of one position. `reads` names the inputs it wants besides its coefficient."""

  reads: ClassVar[tuple[str, ...]] = ()

  @property
  def name(self) -> str:
    record: Any = self  # every term is a static record
    fields = dataclasses.fields(record)
    settings = ', '.join(f'{field.name}={getattr(self, field.name)}' for field in fields)
    return f'{type(self).__name__}({settings})'

  @property
  def inputs_wanted(self) -> tuple[str, ...]:
    """The names of its inputs."""
    return self.reads

  def __call__(self, coefficient: Float[AnyArray, 'B R'], **inputs: AnyArray) -> 'WeightedTerm':
    wanted = set(self.inputs_wanted)
    if wanted != inputs.keys():
      missing, surplus = sorted(wanted - inputs.keys()), sorted(inputs.keys() - wanted)
      raise ValueError(
        f'{self.name}: it reads {sorted(wanted)} besides its coefficient; missing {missing}, surplus {surplus}.'
      )
    return WeightedTerm(self, coefficient, inputs)


class WeightedTerm(NamedTuple):
  """One term of a loss: Σ_{b,r} coefficient · term."""

  term: Term
  coefficient: Float[AnyArray, 'B R']  # weight · normaliser, already divided
  inputs: Inputs  # what the term reads besides, each [B, R] or [B, R, …]


class OnToken(Term):
  """A term of the log-probability of the written token."""

  def value(self, logp: Float[Array, '*N'], inputs: Inputs) -> Float[Array, '*N']:
    raise NotImplementedError


@static
class PolicyGradient(OnToken):
  """-log p(y). The coefficient carries the advantage: Σ coefficient · term is then REINFORCE."""

  def value(self, logp, inputs):
    return -logp


@static
class Likelihood(OnToken):
  """-log p(y), as a likelihood: the coefficient is a weight."""

  def value(self, logp, inputs):
    return -logp


@static
class ClippedRatio(OnToken):
  """PPO's -min(ρ A, clip(ρ, 1 - low, 1 + high) A), ρ = p(y) / behaviour. Inputs: advantage, behaviour_logp.

  With one update per batch ρ = 1 and the gradient is that of `PolicyGradient`.

  Args:
    low, high: how far the ratio may move.
    dual: where A < 0, the loss is at most -dual · A (dual clip); None leaves it.
  """

  low: float = 0.2
  high: float = 0.2
  dual: float | None = None

  reads: ClassVar[tuple[str, ...]] = ('advantage', 'behaviour_logp')

  def __post_init__(self):
    if self.low < 0 or self.high < 0 or (self.dual is not None and self.dual <= 1):
      raise ValueError(
        f'ClippedRatio: low and high must not be negative, dual above 1; got {self.low}, {self.high}, {self.dual}.'
      )

  def value(self, logp, inputs):
    advantage = inputs['advantage']
    ratio = jnp.exp(logp - inputs['behaviour_logp'])
    clipped = jnp.clip(ratio, 1 - self.low, 1 + self.high)
    loss = -jnp.minimum(ratio * advantage, clipped * advantage)
    if self.dual is None:
      return loss
    return jnp.where(advantage < 0, jnp.minimum(loss, -self.dual * advantage), loss)


@static
class ImportanceRatio(OnToken):
  """-ρ A without a clip, ρ = p(y) / behaviour. Inputs: advantage, behaviour_logp."""

  reads: ClassVar[tuple[str, ...]] = ('advantage', 'behaviour_logp')

  def value(self, logp, inputs):
    return -jnp.exp(logp - inputs['behaviour_logp']) * inputs['advantage']


@static
class K2(OnToken):
  """½ (log p - log q)² as a direct loss: on-policy its expected gradient is that of reverse KL. Input: teacher_logp."""

  reads: ClassVar[tuple[str, ...]] = ('teacher_logp',)

  def value(self, logp, inputs):
    return 0.5 * jnp.square(logp - inputs['teacher_logp'])


@static
class K3(OnToken):
  """u - 1 - log u as a direct loss: on-policy its expected gradient is that of *forward* KL. Input: teacher_logp."""

  reads: ClassVar[tuple[str, ...]] = ('teacher_logp',)

  def value(self, logp, inputs):
    gap = inputs['teacher_logp'] - logp
    return jnp.expm1(gap) - gap


@static
class TruncatedRatio:
  """min( p(y) / behaviour, max ) of the *present* student, without a gradient: for text that other weights wrote."""

  max: float = 5.0

  def __post_init__(self):
    if not self.max > 0:
      raise ValueError(f'TruncatedRatio: max must be above 0, got {self.max}.')

  def value(self, logp: Float[Array, '*N'], behaviour_logp: Float[AnyArray, '*N']) -> Array:
    return jax.lax.stop_gradient(jnp.exp(jnp.minimum(logp - behaviour_logp, jnp.log(self.max))))


@static
class DivergenceTerm(Term):
  """A divergence on a support.

  Args:
    divergence: how far the student is from the judge.
    support: which entries are compared.
    of: the judge that is compared with.
    max_per_token: a position whose value is above this bound counts with the bound, and has no gradient.
    temperature: both models' logits are divided by it.
    ratio: corrects for text that other weights wrote; it reads the input behaviour_logp.
  """

  divergence: Divergence
  support: Support
  of: str = 'teacher'
  max_per_token: float | None = None
  temperature: float = 1.0
  ratio: TruncatedRatio | None = None

  def __post_init__(self):
    self.support.check(self.divergence)
    if not self.temperature > 0:
      raise ValueError(f'DivergenceTerm: temperature must be above 0, got {self.temperature}.')

  @property
  def inputs_wanted(self) -> tuple[str, ...]:
    return () if self.ratio is None else ('behaviour_logp',)

  @property
  def name(self) -> str:
    parts = [f'{self.divergence.name} on {self.support.name}']
    parts += [f'of the {self.of}'] if self.of != 'teacher' else []
    parts += [f'at temperature {self.temperature:g}'] if self.temperature != 1.0 else []
    parts += [f'at most {self.max_per_token:g} a token'] if self.max_per_token is not None else []
    parts += [f'times a ratio of at most {self.ratio.max:g}'] if self.ratio is not None else []
    return ', '.join(parts)


class AtIds(Term):
  """A term of the log-probabilities of some ids, [B, R, C]; one outside the vocabulary counts nothing."""

  def value(self, logp: Float[Array, '*N C'], inputs: Inputs) -> Float[Array, '*N']:
    raise NotImplementedError


@static
class Candidates(AtIds):
  """-Σ_c weights_c · log p(ids_c): soft targets, or a policy gradient over several candidates of a position.

  Inputs: ids and weights, [B, R, C].
  """

  reads: ClassVar[tuple[str, ...]] = ('ids', 'weights')

  def value(self, logp, inputs):
    return -(inputs['weights'] * logp).sum(axis=-1)


@static
class ClippedCandidates(AtIds):
  """`ClippedRatio` for each of several candidates of a position, which has a ratio of its own; their sum.

  Inputs: ids, advantages and behaviour_logps, [B, R, C].
  """

  clip: ClippedRatio = ClippedRatio()

  reads: ClassVar[tuple[str, ...]] = ('ids', 'advantages', 'behaviour_logps')

  def value(self, logp, inputs):
    behaviour = inputs['behaviour_logps']
    one = {'advantage': inputs['advantages'], 'behaviour_logp': behaviour}
    return self.clip.value(logp, one).sum(axis=-1)


@static
class EntriesAtIds(AtIds):
  """Σ_c D(p, q)_c over some ids and the log q that the method gives them: plain entries, of a sum that nothing closes.

  Inputs: ids and log_q, [B, R, C].
  """

  divergence: Divergence

  reads: ClassVar[tuple[str, ...]] = ('ids', 'log_q')

  @property
  def name(self) -> str:
    return f'{self.divergence.name} at ids'

  def value(self, logp, inputs):
    return Raw(self.divergence)(logp, jnp.asarray(inputs['log_q']))


@static
class HiddenDistance(Term):
  """Mean squared distance of the states that predict the token. Input: hidden [B, R, D]; widths must agree."""

  reads: ClassVar[tuple[str, ...]] = ('hidden',)

  def value(self, hidden: Float[Array, '*N D'], inputs: Inputs) -> Float[Array, '*N']:
    wide = jnp.promote_types(jnp.float32, hidden.dtype)
    return jnp.mean(jnp.square(hidden.astype(wide) - inputs['hidden'].astype(wide)), axis=-1)
