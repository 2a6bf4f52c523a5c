"""TrOPD, arXiv:2606.01249: policy gradient where the teacher accepts a token, its own top k where not."""

import jax
import jax.numpy as jnp
from jaxtyping import Bool

from opd_jax import rollouts
from opd_jax.claims import Claim, Converges, Nothing
from opd_jax.losses import advantages, selectors
from opd_jax.losses.divergences import ForwardKL
from opd_jax.losses.normalisers import per_token
from opd_jax.losses.rest_rules import Unclosed
from opd_jax.losses.supports import Support, TeacherTopK
from opd_jax.losses.terms import DivergenceTerm, Likelihood, PolicyGradient
from opd_jax.method import Evidence, Method, Requirements, WeightedTerms, required_by
from opd_jax.ramps import Number, Ramp
from opd_jax.types import TEACHER, AnyArray

OUTLIERS = ('forward kl', 'forward kl as a number', 'clipped', 'masked')
FLOOR = -1.6  # nats: the fixed threshold that the paper takes over from REOPOLD

VARIANTS = {
  'outliers only': {'prefix': None},
  'as reported': {'outliers': 'forward kl as a number'},
  'masked': {'prefix': None, 'outliers': 'masked'},
  'masked below a floor': {'prefix': None, 'outliers': 'masked', 'floor': FLOOR},
  'clipped below a floor': {'prefix': None, 'outliers': 'clipped', 'floor': FLOOR},
  'random outliers': {'prefix': None, 'at_random': 0.1},
}


def _claim(outliers: str, prefix: Number | None) -> Claim:
  if prefix is not None:
    return Nothing('at first the teacher writes, and its text is taught')
  if outliers in ('clipped', 'masked'):
    return (
      Converges()
    )  # only at the teacher have all tokens of a position the same expected advantage
  return Nothing('a rejected token is answered by a part of the vocabulary')


def tropd(
  *,
  outliers: str = 'forward kl',
  k: int = 64,
  prefix: Number | None = Ramp(begin=8096, end=0, steps=200, shape='cosine'),
  guidance: float = 1e-3,
  floor: float | None = None,
  at_random: float | None = None,
) -> Method:
  r"""OPD of the tokens that speculative decoding would accept; of the others, forward KL on the teacher's top k.

      M_t ~ Bernoulli( min(1, q(y_t) / p(y_t)) )
      loss = Σ_t [ -M_t d_t log p(y_t) + (1 - M_t) Σ_{v in top k} q log(q / p) + β (-log p(y_t)) 1[y_t ~ q] ] / tokens

  arXiv:2606.01249, k = 64, β = 1e-3; d = log q(y_t) - log p(y_t). The sum is not renormalised. The last term is of the
  prefix that the teacher writes, at first the whole text and after 200 steps nothing. Tokens are rejected at the rate
  of the total variation between p and q. The paper does not say what it divides by. A reader of the training scripts
  reports that the sum there is a number: minus it is the advantage of the rejected token, `as reported`. We have not
  seen that code, and take the printed formula.

  Args:
    outliers: what a rejected token is answered with: 'forward kl', 'forward kl as a number', 'clipped' (its gap, but
      never below the floor, or -1.6 without one), 'masked' (nothing).
    k: entries of the teacher that are compared.
    prefix: tokens that the teacher writes first; None leaves all to the student.
    guidance: β.
    floor: tokens are rejected where d lies below it, instead of at random: REOPOLD's rule.
    at_random: the control: this fraction of every response is rejected, whatever the teacher thinks of it.
  """
  if outliers not in OUTLIERS:
    raise ValueError(f'tropd: outliers is one of {", ".join(OUTLIERS)}; got {outliers!r}.')
  if floor is not None and at_random is not None:
    raise ValueError('tropd: a floor rejects tokens, and so does at_random; give one of them.')
  sparse = Support(entries=TeacherTopK(k), rest=Unclosed())
  local = DivergenceTerm(divergence=ForwardKL(), support=sparse)

  def rejected(evidence: Evidence) -> Bool[AnyArray, 'B R']:
    gap = advantages.log_ratio(evidence.teacher.logp, evidence.student.logp)
    if floor is not None:
      return gap < floor
    if at_random is not None:
      return selectors.random_mask(evidence.key, evidence.mask, fraction=at_random) > 0
    return jnp.log(jax.random.uniform(evidence.key, gap.shape)) >= gap

  def weigh(evidence: Evidence) -> WeightedTerms:
    mean, theirs = per_token(evidence.mask), evidence.rollout.writer == TEACHER
    out = rejected(evidence)
    gap = advantages.log_ratio(evidence.teacher.logp, evidence.student.logp)
    answer = jnp.zeros_like(gap)
    if outliers == 'clipped':
      answer = jnp.maximum(gap, FLOOR if floor is None else floor)
    elif outliers == 'forward kl as a number':
      answer = -evidence.measures['local']
    terms = (
      PolicyGradient()(mean * ~theirs * jnp.where(out, answer, gap)),
      Likelihood()(guidance * mean * theirs),
    )
    return (*terms, local(mean * ~theirs * out)) if outliers == 'forward kl' else terms

  needs = {
    'forward kl': required_by(local),
    'forward kl as a number': Requirements(measures={'local': local}),
  }
  return Method(
    rollout=rollouts.RolloutMix(prefix=prefix, prefix_counts=True),
    needs=needs.get(outliers, Requirements()),
    weigh=weigh,
    claim=_claim(outliers, prefix),
    paper='arXiv:2606.01249',
  )
