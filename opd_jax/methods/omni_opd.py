"""OmniOPD, arXiv:2606.01476: a teacher that only writes; chunks of the student's text that it would write as well."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from opd_jax import rollouts
from opd_jax.claims import Nothing
from opd_jax.forks import Forking, Forks, best_points, without_forks
from opd_jax.losses.divergences import ForwardKL
from opd_jax.losses.edit_distance import similarity
from opd_jax.losses.normalisers import per_token
from opd_jax.losses.supports import FULL
from opd_jax.losses.terms import DivergenceTerm, Likelihood
from opd_jax.method import Evidence, Method, Requirements, WeightedTerms, required_by
from opd_jax.types import TEACHER, ScoreRequest

VARIANTS = {
  'random anchors': {'at_random': True},
  'with a baseline': {'baseline': True},
}


class Chunks(NamedTuple):
  """The student's chunks, and what the teacher wrote in their place."""

  row: Int[Array, ' K']  # -1: no chunk
  where: Int[Array, 'K C']
  inside: Bool[Array, 'K C']  # whether the student wrote a token there
  alike: Float[Array, 'K N']  # similarity with each continuation


def chunks_of(evidence: Evidence, forks: Forks, *, size: int, count: int) -> Chunks:
  """Chunks of `size` tokens from where the forks leave, `count` forks each."""
  rollout = jax.tree.map(jnp.asarray, evidence.rollout)
  row, at = jnp.asarray(forks.row), jnp.asarray(forks.at)
  own = rollout.mask.shape[0] - len(row) + jnp.arange(len(row))
  where = at[:, None] + jnp.arange(size)
  exists = (where < rollout.mask.shape[1]) & (row >= 0)[:, None]
  where = jnp.minimum(where, rollout.mask.shape[1] - 1)
  pick = lambda x, rows: x[rows[:, None], where]
  mine, theirs = (exists & pick(rollout.mask, rows) for rows in (row, own))
  alike = jax.vmap(similarity)(
    pick(rollout.response, row), pick(rollout.response, own), mine.sum(axis=1), theirs.sum(axis=1)
  )
  return Chunks(row[::count], where[::count], mine[::count], alike.reshape(-1, count))


def estimates(
  evidence: Evidence, chunks: Chunks, *, alpha: float, baseline: bool
) -> Float[Array, ' K']:
  """π of every chunk."""
  logp = evidence.student.logp[chunks.row[:, None], chunks.where]
  size = jnp.maximum(chunks.inside.sum(axis=1), 1)
  likely = jnp.exp(jnp.where(chunks.inside, logp, 0.0).sum(axis=1) / size)
  found = (chunks.alike.sum(axis=1) + alpha * likely) / (chunks.alike.shape[1] + alpha)
  real = chunks.row >= 0
  mean = jnp.where(real, found, 0.0).sum() / jnp.maximum(real.sum(), 1)
  return found - mean if baseline else found


def omni_opd(
  *,
  anchors: int = 10,
  chunk: int = 50,
  continuations: int = 10,
  alpha: float = 1.0,
  beta: float = 0.1,
  baseline: bool = False,
  at_random: bool = False,
) -> Method:
  r"""Likelihood of the student's own chunks, as far as the teacher writes alike there; elsewhere the student stays.

      loss = [ -Σ_c π_c Σ_{t in c} log p(y_t) + β Σ_{t in no c} KL(r ‖ p) ] / tokens
      π_c = (Σ_i φ(y_c, z_i) + α p_c) / (N + α)

  arXiv:2606.01476. A chunk begins at one of the M tokens of highest entropy; z are what the teacher writes there, φ
  is 1 - the normalised edit distance, p_c the geometric mean of the student's probabilities, r the student before
  training. π is a constant, which the paper implies. Chunks do not overlap, where the paper says nothing.

  Args:
    anchors, chunk, continuations: M, C and N.
    alpha, beta: α and β; without β the published accuracy collapses, 72.3 to 8.3.
    baseline: takes the batch's mean off π, so that poor chunks are unlearnt; not of the paper.
    at_random: the control: anchors are drawn.
  """
  if min(anchors, chunk, continuations) < 1 or alpha <= 0 or beta < 0:
    raise ValueError(
      'omni_opd: anchors, chunk and continuations must be at least 1, alpha above 0, beta not negative; got '
      f'{anchors}, {chunk}, {continuations}, {alpha}, {beta}.'
    )
  stay = DivergenceTerm(divergence=ForwardKL(), support=FULL, of='reference')

  def plan(evidence: Evidence) -> Forks:
    score = evidence.student.entropy
    if at_random:
      score = jax.random.uniform(evidence.key, score.shape)
    at, there = best_points(score, evidence.mask, count=anchors, gap=chunk)
    row = jnp.where(there, jnp.arange(len(at))[:, None], -1)
    every = lambda x: jnp.repeat(x.reshape(-1), continuations).astype(jnp.int32)
    size = at.size * continuations
    return Forks(
      row=every(row),
      at=every(at),
      first=jnp.full(size, -1, jnp.int32),
      writer=jnp.full(size, TEACHER, jnp.int32),
    )

  def weigh(evidence: Evidence) -> WeightedTerms:
    counts = per_token(without_forks(evidence.mask, evidence.forks))
    if evidence.forks is None:
      return (stay(beta * counts),)
    chunks = chunks_of(evidence, evidence.forks, size=chunk, count=continuations)
    value = estimates(evidence, chunks, alpha=alpha, baseline=baseline)
    value = jnp.where(chunks.inside, value[:, None], 0.0)
    place = jnp.maximum(chunks.row, 0)[:, None], chunks.where
    weight = jnp.zeros(counts.shape, value.dtype).at[place].add(value)
    outside = jnp.ones(counts.shape, bool).at[place].min(~chunks.inside)
    return Likelihood()(counts * weight), stay(beta * counts * outside)

  return Method(
    rollout=rollouts.student(),
    needs=required_by(stay) | Requirements(student=ScoreRequest(entropy=True)),
    weigh=weigh,
    claim=Nothing("the student's own text is reinforced, by how the teacher's text looks"),
    forks=Forking(plan=plan, tokens=chunk),
    paper='arXiv:2606.01476',
  )
