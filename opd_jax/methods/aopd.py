"""Asymmetric on-policy distillation, arXiv:2605.06387, with its gates."""

import jax.numpy as jnp
from jaxtyping import Bool

from opd_jax import rollouts
from opd_jax.claims import Claim, Converges, Nothing
from opd_jax.losses import advantages, weights
from opd_jax.losses.divergences import Divergence, ForwardKL
from opd_jax.losses.normalisers import per_sequence
from opd_jax.losses.rest_rules import Renormalised, RestRule, Tail, TeacherOnly
from opd_jax.losses.supports import Support, TeacherTopK
from opd_jax.losses.terms import DivergenceTerm, PolicyGradient
from opd_jax.method import Evidence, Method, WeightedTerms, required_by
from opd_jax.static import static
from opd_jax.types import AnyArray


class Gate:
  """Where the divergence takes over from the policy gradient."""

  @property
  def leaves_agreement(self) -> bool:
    """Whether a token that teacher and student agree on, or that gains, is left to the policy gradient."""
    return True

  def __call__(self, evidence: Evidence) -> Bool[AnyArray, 'B R']:
    raise NotImplementedError


@static
class Below(Gate):
  """Where q(y) - p(y) ≤ δ, as probabilities (eq. 9). δ < -1 never intervenes, δ = 1 always."""

  delta: float = 0.0

  @property
  def leaves_agreement(self) -> bool:
    return self.delta <= 0

  def __call__(self, evidence):
    gap = jnp.exp(evidence.teacher.logp) - jnp.exp(evidence.student.logp)
    return gap <= self.delta


@static
class Zero(Gate):
  """AOPD-Zero: where the advantage is numerically zero. The paper gives no tolerance; this one is for float32."""

  tolerance: float = 1e-6

  def __call__(self, evidence):
    gap = advantages.log_ratio(evidence.teacher.logp, evidence.student.logp)
    return jnp.abs(gap) <= self.tolerance


@static
class BelowWhereWrong(Gate):
  """The accuracy filter: `Below`, and only in responses that a verifier gave no reward."""

  delta: float = 0.0

  @property
  def leaves_agreement(self) -> bool:
    return self.delta <= 0

  def __call__(self, evidence):
    wrong = weights.wrong(evidence.rollout.reward)
    return Below(delta=self.delta)(evidence) & wrong[:, None]


def _claim(intervene: Gate, rest: RestRule) -> Claim:
  if not isinstance(rest, Renormalised | Tail):
    return Nothing(f'{rest.label} pulls the student elsewhere than to the teacher')
  if not intervene.leaves_agreement:
    return Nothing('near the teacher only its top k is compared')
  return Converges()


VARIANTS = {
  'zero gate': {'intervene': Zero()},
  'accuracy filter': {'intervene': BelowWhereWrong()},
  'always': {'intervene': Below(delta=1.0)},
  'teacher only': {'rest': TeacherOnly()},
}


def aopd(
  *,
  intervene: Gate = Below(),
  k: int = 32,
  divergence: Divergence = ForwardKL(),
  rest: RestRule = Renormalised(),
) -> Method:
  r"""Exploit where the teacher agrees, imitate where it does not.

      L = mean_i (1 / n_i) Σ_t [ G_t D_t + (1 - G_t) (-A_t log p(y_t)) ],      A_t = log q(y_t) - log p(y_t)

  arXiv:2605.06387, eqs. 9 and 10; D is the forward KL on the teacher's top K. Per *sequence*: a port that divides by
  tokens is another method.

  A token that the student writes with a small p and the teacher never would is pulled down by about 2 p²: D has weight
  only where it was written. OPD pulls by p log p / q, at p = 0.01 and q = 1e-6 460 times as much. So errors that have
  become rare may come back at a constant rate of learning: stop early, or let the rate fall.

  Args:
    intervene: G, where the divergence takes over: `Below`, `Zero` or `BelowWhereWrong`.
    k: entries of the teacher that are compared.
    divergence: D.
    rest: how the support is closed. `Renormalised` divides both sides by their mass, as the paper's appendix says: a
      sampled token outside the support then has no gradient. `TeacherOnly` pushes it down.
  """
  guide = DivergenceTerm(divergence=divergence, support=Support(entries=TeacherTopK(k), rest=rest))

  def weigh(evidence: Evidence) -> WeightedTerms:
    guided = intervene(evidence)
    advantage = advantages.log_ratio(evidence.teacher.logp, evidence.student.logp)
    mean = per_sequence(evidence.mask)
    return guide(mean * guided), PolicyGradient()(mean * ~guided * advantage)

  return Method(
    rollout=rollouts.student(),
    needs=required_by(guide),
    weigh=weigh,
    claim=_claim(intervene, rest),
    paper='arXiv:2605.06387',
  )
