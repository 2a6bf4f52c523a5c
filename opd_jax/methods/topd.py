"""TOPD, arXiv:2606.00305: where the models part, the student learns the near future that the teacher would have."""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from opd_jax import rollouts
from opd_jax.claims import Nothing, Unbiased
from opd_jax.forks import Forking, Forks, best_points, without_forks
from opd_jax.losses import advantages, normalisers, weights
from opd_jax.losses.divergences import ReverseKL
from opd_jax.losses.terms import Candidates, PolicyGradient, WeightedTerm
from opd_jax.losses.transport import cosine_cost, sinkhorn
from opd_jax.method import Evidence, Method, Requirements, WeightedTerms
from opd_jax.types import STUDENT, TEACHER, AnyArray, ScoreRequest

VARIANTS = {
  'every point': {'spared': 0.0},
  'random points': {'control': 'points'},
  'spared at random': {'control': 'spared'},
  'without guidance': {'guidance': 0.0},
}


class _Future(NamedTuple):
  """One model's continuations of all points."""

  row: Int[Array, 'N 1']
  column: Int[Array, 'N K']
  token: Int[Array, 'N K']
  state: Float[Array, 'N K D']  # of the teacher, when it has read the token
  real: Bool[Array, 'N K']  # there is such a token, and such a state


def _futures(evidence: Evidence, forks: Forks, tokens: int) -> tuple[_Future, _Future]:
  """The student's and the teacher's."""
  mask, states = jnp.asarray(evidence.mask), evidence.teacher.layers[:, :, 0]
  row = (len(mask) - len(forks.row) + jnp.arange(len(forks.row)))[:, None]
  here, last = jnp.asarray(forks.at)[:, None] + jnp.arange(tokens), mask.shape[1] - 1
  # A state predicts the token of its column: it is the one behind that has read the token.
  column, behind = jnp.minimum(here, last), jnp.minimum(here + 1, last)
  real = (here < last) & mask[row, column] & mask[row, behind]
  real &= (jnp.asarray(forks.row) >= 0)[:, None]
  token = jnp.asarray(evidence.rollout.response)[row, column]
  whole = _Future(row, column, token, states[row, behind], real)
  return _Future(*(x[0::2] for x in whole)), _Future(*(x[1::2] for x in whole))


def _placed(future: _Future, mask: Bool[AnyArray, 'B R'], value: AnyArray) -> Array:
  """A value of every token of the continuations, where that token stands in the batch."""
  inside = future.real.reshape(future.real.shape + (1,) * (value.ndim - 2))
  empty = jnp.zeros(mask.shape + value.shape[2:], value.dtype)
  return empty.at[future.row, future.column].add(jnp.where(inside, value, 0))


def _forks(at: Int[Array, 'B P'], there: Bool[Array, 'B P']) -> Forks:
  """Two of every point: the student's, and behind it the teacher's."""
  row = jnp.where(there, jnp.arange(len(at))[:, None], -1)
  twice = lambda x: jnp.repeat(x.reshape(-1), 2).astype(jnp.int32)
  return Forks(
    row=twice(row),
    at=twice(at),
    first=jnp.full(2 * at.size, -1, jnp.int32),
    writer=jnp.tile(jnp.array([STUDENT, TEACHER], jnp.int32), at.size),
  )


def topd(
  *,
  guidance: float = 0.1,
  points: int = 4,
  tokens: int = 50,
  spared: float = 0.29,
  eps: float = 0.05,
  iterations: int = 50,
  control: str | None = None,
) -> Method:
  r"""OPD, and the teacher's continuation as a soft target along the student's, matched by optimal transport.

      loss = OPD - λ mean_points mean_i Σ_j γ_ij / (Σ_j γ_ij) log p(x'_j | y_<t, x_<i),      C_ij = 1 - cos(e_i, e'_j)

  arXiv:2606.00305. From the tokens of highest log p(y_t) - log q(y_t), x goes on from y_<t as the student does, x' as
  the teacher; γ is the plan of least cost with uniform marginals, a *row* for a token of the student. The gradient is
  that of the paper's KL. Our choice, where the paper is silent: λ, C, ε, and rows divided by their sum. Departs: e is
  the teacher's state after its first layer, which has read the token and what precedes it, since judges hand out no
  embeddings; the last token of a continuation has none and takes no part. Points are so many of a response, not of the
  batch.

  Args:
    guidance: λ.
    points: of a response; each costs a continuation by either model.
    tokens: K, of a continuation.
    spared: the part of the batch's points that is not taught: those of the lowest Σ γ C.
    eps, iterations: of Sinkhorn's algorithm.
    control: 'points' draws the points, 'spared' draws which are spared, as many as without it.
  """
  if min(points, tokens - 1, iterations) < 1 or guidance < 0 or eps <= 0 or not 0 <= spared < 1:
    raise ValueError(
      'topd: points and iterations must be at least 1, tokens 2, guidance not negative, eps above 0, spared in [0, 1); '
      f'got {points}, {iterations}, {tokens}, {guidance}, {eps}, {spared}.'
    )
  if control not in (None, 'points', 'spared'):
    raise ValueError(f"topd: control is None, 'points' or 'spared', got {control!r}.")
  transport = jax.vmap(functools.partial(sinkhorn, eps=eps, iterations=iterations))

  def plan(evidence: Evidence) -> Forks:
    loss = evidence.student.logp - evidence.teacher.logp
    score = jax.random.uniform(evidence.key, loss.shape) if control == 'points' else loss
    return _forks(*best_points(score, evidence.mask, count=points))

  def guided(evidence: Evidence, forks: Forks) -> WeightedTerm:
    student, teacher = _futures(evidence, forks, tokens)
    cost = cosine_cost(student.state, teacher.state)
    moved = transport(cost, student.real, teacher.real)
    distance = (moved * cost).sum(axis=(1, 2))
    score = jax.random.uniform(evidence.key, distance.shape) if control == 'spared' else distance
    both = student.real.any(axis=1) & teacher.real.any(axis=1)
    taught = weights.quantile_filter(score, both[:, None], drop=spared)
    share = normalisers.per_sequence(student.real & taught[:, None])
    target = moved / jnp.maximum(moved.sum(axis=2, keepdims=True), 1e-30)

    placed = functools.partial(_placed, student, evidence.mask)
    ids = jnp.broadcast_to(teacher.token[:, None, :], target.shape)
    return Candidates()(guidance * placed(share), ids=placed(ids), weights=placed(target))

  def weigh(evidence: Evidence) -> WeightedTerms:
    gap = advantages.log_ratio(evidence.teacher.logp, evidence.student.logp)
    counts = normalisers.per_token(without_forks(evidence.mask, evidence.forks))
    plain = PolicyGradient()(counts * gap)
    return (plain,) if evidence.forks is None else (plain, guided(evidence, evidence.forks))

  guides = guidance > 0
  writers = ('student', 'teacher')
  return Method(
    rollout=rollouts.student(),
    needs=Requirements(teacher=ScoreRequest(layers=(0,))) if guides else Requirements(),
    weigh=weigh,
    claim=Nothing("continuations are the teacher's, at prefixes that are the student's")
    if guides
    else Unbiased(divergence=ReverseKL()),
    forks=Forking(plan=plan, tokens=tokens, writers=writers) if guides else None,
    paper='arXiv:2606.00305',
  )
