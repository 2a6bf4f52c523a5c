"""Importance-weighted on-policy distillation, arXiv:2606.22600, with its weights and their controls."""

from jaxtyping import Bool, Float

from opd_jax import rollouts
from opd_jax.claims import Converges, Nothing
from opd_jax.losses import advantages, selectors, weights
from opd_jax.losses.normalisers import per_token
from opd_jax.losses.terms import ClippedRatio
from opd_jax.method import Evidence, Method, WeightedTerms
from opd_jax.static import static
from opd_jax.types import AnyArray

Tokens = Float[AnyArray, 'B R']
Mask = Bool[AnyArray, 'B R']


class Weight:
  """How much a token counts, from the gap to the teacher and the mask."""

  @property
  def whole(self) -> bool:
    """Whether every token of a response has a weight above zero."""
    return True

  def __call__(self, gap: Tokens, mask: Mask) -> Tokens:
    raise NotImplementedError


@static
class Cumulative(Weight):
  """1 + γ (1 - F), F the part of |gap| that lies before: the paper's rule. `signed` keeps the gap's sign."""

  gamma: float = 0.5
  signed: bool = False

  def __call__(self, gap, mask):
    return weights.prefix_discrepancy(gap, mask, gamma=self.gamma, signed=self.signed)


@static
class Linear(Weight):
  """1 + γ (1 - t / n)."""

  gamma: float = 0.5

  def __call__(self, gap, mask):
    return weights.linear(mask, gamma=self.gamma)


@static
class FixedPrefix(Weight):
  """1 + γ on the first `fraction` of a response, 1 behind."""

  gamma: float = 0.5
  fraction: float = 0.3

  def __call__(self, gap, mask):
    return 1.0 + self.gamma * selectors.first(mask, fraction=self.fraction)


@static
class First(Weight):
  """Nothing but the first `fraction` of a response."""

  fraction: float = 0.3

  @property
  def whole(self) -> bool:
    return self.fraction == 1.0

  def __call__(self, gap, mask):
    return selectors.first(mask, fraction=self.fraction)


@static
class Last(Weight):
  """Nothing but the last `fraction` of a response."""

  fraction: float = 0.3

  @property
  def whole(self) -> bool:
    return self.fraction == 1.0

  def __call__(self, gap, mask):
    return selectors.last(mask, fraction=self.fraction)


@static
class MeanOne(Weight):
  """The control: the same weight with mean one, so that no part of its effect is a larger step."""

  weight: Weight = Cumulative()

  @property
  def whole(self) -> bool:
    return self.weight.whole

  def __call__(self, gap, mask):
    return weights.mean_one(self.weight(gap, mask), mask)


VARIANTS = {
  'first': {'weight': First()},
  'last': {'weight': Last()},
  'signed': {'weight': Cumulative(signed=True)},
  'linear': {'weight': Linear()},
  'fixed prefix': {'weight': FixedPrefix()},
  'mean one': {'weight': MeanOne()},
}


def iw_opd(*, weight: Weight = Cumulative(), clip: float = 0.2, dual: float | None = 3.0) -> Method:
  r"""OPD whose early tokens count more, by how far teacher and student have already come apart.

      loss = Σ_t PPO( w_t A_t ) / tokens,      w_t = 1 + γ (1 - Σ_{k<t} |A_k| / Σ_k |A_k|)

  arXiv:2606.22600; γ = 0.5. Weights are not renormalised, as published: `MeanOne` is the control for that.
  Departs: the paper's denominator leaves the last token out, its code does not; we follow the code.

  Args:
    weight: one of this file's.
    clip, dual: of the ratio; they act from the second update of a batch on.
  """
  ratio = ClippedRatio(low=clip, high=clip, dual=dual)

  def weigh(evidence: Evidence) -> WeightedTerms:
    mask, student = evidence.mask, evidence.student.logp
    gap = advantages.log_ratio(evidence.teacher.logp, student)
    advantage = weight(gap, mask) * gap
    return (ratio(per_token(mask), advantage=advantage, behaviour_logp=student),)

  partial = Nothing('a part of every response has no weight, and learns nothing')
  return Method(
    rollout=rollouts.student(),
    weigh=weigh,
    claim=Converges() if weight.whole else partial,
    paper='arXiv:2606.22600',
  )
