"""LGR, arXiv:2605.30833: where the teacher has lost its certainty, what it would say one token later still tells."""

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from opd_jax import rollouts
from opd_jax.claims import Nothing, Unbiased
from opd_jax.forks import Forking, Forks, best_points, without_forks
from opd_jax.losses import advantages
from opd_jax.losses.divergences import ReverseKL
from opd_jax.losses.normalisers import per_token
from opd_jax.losses.terms import PolicyGradient
from opd_jax.method import Evidence, Method, Requirements, WeightedTerms
from opd_jax.types import TEACHER, AnyArray, ScoreRequest

VARIANTS = {
  'without lookahead': {'gamma': 0.0},
  'printed sign': {'gamma': -1.0},
}


def _ahead(confidence: Float[AnyArray, 'B R'], mask: Bool[AnyArray, 'B R'], row, at):
  """Confidence one token behind `at`, and whether there is such a token."""
  behind = jnp.minimum(at + 1, mask.shape[1] - 1)
  return confidence[row, behind], mask[row, behind] & (at + 1 < mask.shape[1])


def lookahead(evidence: Evidence, forks: Forks, *, k: int, eps: float) -> Float[Array, 'B R']:
  """What the forks, `k` of a point, add to the advantage of the tokens in whose place they leave."""
  mask, confidence = evidence.mask, jnp.exp(evidence.teacher.top_k.logp[..., 0])
  own, count = len(mask) - len(forks.row), len(forks.row) // k
  told, known = _ahead(confidence, mask, own + jnp.arange(len(forks.row)), jnp.asarray(forks.at))
  row, at, first = (jnp.asarray(x).reshape(count, k) for x in forks[:3])
  row, at = row[:, 0], at[:, 0]
  mine, there = _ahead(confidence, mask, row, at)
  same = first == evidence.rollout.response[row, at][:, None]
  new = ~same.any(axis=1) & there
  among = jnp.concatenate([known.reshape(count, k), new[:, None]], axis=1)
  # One number for one prefix: row and fork differ by rounding, which the deviation of equal rivals would blow up.
  told = jnp.where(same, mine[:, None], told.reshape(count, k))
  told = jnp.concatenate([told, mine[:, None]], axis=1)
  n = jnp.maximum(among.sum(axis=1), 1)
  mean = jnp.where(among, told, 0.0).sum(axis=1) / n
  spread = jnp.sqrt(jnp.where(among, (told - mean[:, None]) ** 2, 0.0).sum(axis=1) / n)
  better = jnp.where(there & (row >= 0), (mine - mean) / (spread + eps), 0.0)
  return jnp.zeros(mask.shape, told.dtype).at[jnp.maximum(row, 0), at].add(better)


def lgr(
  *, gamma: float = 1.0, k: int = 8, threshold: float = 0.2, points: int = 8, eps: float = 1e-6
) -> Method:
  r"""OPD, and beside it the teacher's confidence one token later, compared among the student's likeliest tokens.

      A_t = log q(y_t) - log p(y_t) + γ (r(y_t) - mean_c r(c)) / (std_c r(c) + ε),     loss = -Σ A_t log p(y_t) / tokens
      r(c) = max_v q(v | y_<t, c),      the second part only where the student's entropy is above τ

  arXiv:2605.30833. c runs over the student's top K, and the written token where that is not among them. The paper adds
  γ r to a *cost*; read as printed it rewards what confuses the teacher (`printed sign`), so here it is a reward.
  Departs: looks ahead at the `points` most uncertain tokens of a response above τ, where the paper takes all of them.

  Args:
    gamma: γ.
    k: K.
    threshold: τ, in nats.
    points: tokens of a response at most.
    eps: ε.
  """
  if min(k - 1, points) < 1 or threshold < 0 or eps <= 0:
    raise ValueError(
      f'lgr: k must be at least 2, points at least 1, threshold not negative and eps above 0; got {k}, {points}, '
      f'{threshold}, {eps}.'
    )

  def plan(evidence: Evidence) -> Forks:
    entropy, likeliest = evidence.student.entropy, evidence.student.top_k.ids
    at, there = best_points(entropy, evidence.mask & (entropy > threshold), count=points)
    row = jnp.arange(len(at))[:, None]
    first = likeliest[row, at]  # [B, P, K]
    every = lambda x: jnp.broadcast_to(x[..., None], first.shape).reshape(-1).astype(jnp.int32)
    return Forks(
      row=every(jnp.where(there, row, -1)),
      at=every(at),
      first=first.reshape(-1).astype(jnp.int32),
      writer=jnp.full(first.size, TEACHER, jnp.int32),
    )

  def weigh(evidence: Evidence) -> WeightedTerms:
    advantage = advantages.log_ratio(evidence.teacher.logp, evidence.student.logp)
    if evidence.forks is not None:
      advantage = advantage + gamma * lookahead(evidence, evidence.forks, k=k, eps=eps)
    counts = per_token(without_forks(evidence.mask, evidence.forks))
    return (PolicyGradient()(counts * advantage),)

  return Method(
    rollout=rollouts.student(),
    needs=Requirements(student=ScoreRequest(entropy=True, top_k=k), teacher=ScoreRequest(top_k=1)),
    weigh=weigh,
    claim=Nothing('a reward for what makes the teacher certain')
    if gamma
    else Unbiased(divergence=ReverseKL()),
    forks=Forking(plan=plan, tokens=1) if gamma else None,
    paper='arXiv:2605.30833',
  )
