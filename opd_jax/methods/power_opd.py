"""PowerOPD, arXiv:2606.17199: a bounded reward, and the bounded rewards it is compared with."""

from jaxtyping import Float

from opd_jax import rollouts
from opd_jax.claims import Claim, Converges, Nothing
from opd_jax.losses import advantages
from opd_jax.losses.normalisers import per_token
from opd_jax.losses.terms import PolicyGradient
from opd_jax.method import Evidence, Method, WeightedTerms
from opd_jax.static import static
from opd_jax.types import AnyArray

Tokens = Float[AnyArray, 'B R']


class Reward:
  """What a token is worth, from its log-probability under teacher and student."""

  @property
  def claim(self) -> Claim:
    return Converges()

  def __call__(self, teacher: Tokens, student: Tokens) -> Tokens:
    raise NotImplementedError


@static
class Power(Reward):
  """q^a - p^a. Its expected gradient is that of Σ (p^(1+a) - q^(1+a)) / (1 + a) - (p - q) q^a, a Bregman divergence."""

  exponent: float = 5.0

  def __post_init__(self):
    if not self.exponent > 0:
      raise ValueError(f'power_opd.Power: exponent must be above 0, got {self.exponent}.')

  @property
  def claim(self):
    rare = Nothing('tokens that neither model is sure of have next to no reward')
    return Converges() if self.exponent <= 1 else rare

  def __call__(self, teacher, student):
    return advantages.power(teacher, student, exponent=self.exponent)


@static
class Clipped(Reward):
  """log q - log p within ±bound: 1 in the paper, 5 in its code."""

  bound: float = 1.0

  def __call__(self, teacher, student):
    gap = advantages.log_ratio(teacher, student)
    return advantages.clipped(gap, min=-self.bound, max=self.bound)


@static
class Squashed(Reward):
  """bound · tanh((log q - log p) / bound)."""

  bound: float = 1.0

  def __call__(self, teacher, student):
    return advantages.squashed(advantages.log_ratio(teacher, student), bound=self.bound)


VARIANTS = {
  'exponent 1': {'reward': Power(exponent=1.0)},
  'exponent 500': {'reward': Power(exponent=500.0)},
  'clipped': {'reward': Clipped()},
  'tanh': {'reward': Squashed()},
}


def power_opd(*, reward: Reward = Power()) -> Method:
  r"""A reward between -1 and 1 instead of the log-ratio, which has no bound below.

      A_t = q(y_t)^a - p(y_t)^a,      loss = -Σ A_t log p(y_t) / tokens

  arXiv:2606.17199. a = 5 as in the released script; 500 is best in the tables, where only tokens count that one model
  is all but certain of. Departs: the token that ends a response counts, every released script masks it.

  Args:
    reward: `Power`, or what the paper compares it with.
  """

  def weigh(evidence: Evidence) -> WeightedTerms:
    advantage = reward(evidence.teacher.logp, evidence.student.logp)
    return (PolicyGradient()(per_token(evidence.mask) * advantage),)

  return Method(
    rollout=rollouts.student(), weigh=weigh, claim=reward.claim, paper='arXiv:2606.17199'
  )
