"""Draft-OPD, arXiv:2605.29343: the student learns to be the draft model of speculative decoding."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from opd_jax import rollouts
from opd_jax.claims import Converges
from opd_jax.forks import Forking, Forks
from opd_jax.losses import advantages
from opd_jax.losses.divergences import Divergence, ForwardKL, ReverseKL
from opd_jax.losses.normalisers import per_token
from opd_jax.losses.supports import FULL
from opd_jax.losses.terms import DivergenceTerm
from opd_jax.method import Evidence, Method, WeightedTerms, required_by
from opd_jax.types import STUDENT, AnyArray

VARIANTS = {
  'no decay': {'decay': 1.0},
  'reverse everywhere': {'kept': ReverseKL()},
  'forward everywhere': {'refused': ForwardKL()},
  'random anchors': {'anchors': 'random'},
  'first refused only': {'blocks': 0},
}

Mask = Bool[AnyArray, 'B R']
Places = Int[Array, 'B R']
Fate = tuple[
  Mask, Mask, Places
]  # proposals that were kept, that were not, and the place in a block


def _on_text(evidence: Evidence, proposals: int) -> Fate:
  """What became of the proposals behind a text of the teacher's, given the text.

  A token y ~ q was proposed by p with probability min(p, q) / q = min(1, p / q), whatever stands around it. Behind so
  many proposals in a row that were kept, the teacher writes a token that was not proposed: its place is `proposals`.
  """
  gap = advantages.log_ratio(evidence.student.logp, evidence.teacher.logp)
  kept = jnp.log(jax.random.uniform(evidence.key, gap.shape)) < gap

  def step(place, column):
    inside, kept = column
    goes_on = jnp.where((place < proposals) & kept, place + 1, 0)
    return jnp.where(inside, goes_on, place), place

  columns = jnp.moveaxis(jnp.stack([evidence.mask, kept]), 2, 0)
  _, places = jax.lax.scan(step, jnp.zeros(len(gap), jnp.int32), (columns[:, 0], columns[:, 1]))
  place = places.T
  judged = evidence.mask & (place < proposals)
  return judged & kept, judged & ~kept, place


def _in_blocks(evidence: Evidence, forks: Forks) -> Fate:
  """What becomes of blocks that the student proposes anew: the proposals up to the first that is refused are kept."""
  gap = advantages.log_ratio(evidence.teacher.logp, evidence.student.logp)
  count, (rows, columns) = len(forks.row), gap.shape
  is_block = evidence.mask & (jnp.arange(rows) >= rows - count)[:, None]
  begin = jnp.zeros(rows, jnp.int32).at[rows - count :].set(jnp.asarray(forks.at))
  key = jax.random.fold_in(evidence.key, 2)  # not that of the text
  kept = jnp.log(jax.random.uniform(key, gap.shape)) < gap
  kept = is_block & (jnp.cumsum(is_block & ~kept, axis=1) == 0)
  place = jnp.maximum(jnp.arange(columns) - begin[:, None], 0)
  return kept, is_block & ~kept, place


def draft_opd(
  *,
  proposals: int = 8,
  blocks: int = 4,
  decay: float = 0.8,
  kept_weight: float = 1.0,
  refused_weight: float = 1.0,
  kept: Divergence = ForwardKL(),
  refused: Divergence = ReverseKL(),
  anchors: str = 'blocks',
) -> Method:
  r"""Forward KL where the teacher keeps what the student proposes, reverse KL where it refuses, on the teacher's text.

      loss = ( a mean_{k <= r} KL(q_k, p_k) + b Σ_{k > r} w_k KL(p_k, q_k) / Σ_{k > r} w_k ) / (a + b),   w_k = d^(k-1)

  arXiv:2605.29343, d = 0.8 and a = b = 1. A block is K proposals of the student behind a prefix of the teacher's text,
  r the number that speculative decoding keeps; both means are over the batch. Our reading: the paper replays the blocks
  of the sampler; ours begin where those of a sampler would, which follows from the text (`_on_text`), and the student
  proposes them anew, so they have the law of the replayed ones. `blocks` of each response are drawn. Its training
  script takes the first refused proposal only: then every prefix is the teacher's text, and no fork is made
  (`blocks = 0`). Departs: the script estimates both divergences on the proposed token, pools both sums, and has
  d = 0.9; ours are of whole distributions. Drafts of the paper propose a block in parallel, ours token by token.

  Args:
    proposals: K, as the draft will be used.
    blocks: of each response that are proposed anew; 0 learns on the text alone.
    decay: d.
    kept_weight, refused_weight: a and b.
    kept, refused: the divergences.
    anchors: 'blocks' begins where a block of the sampler does, 'random' at any token: the paper's control.
  """
  if min(proposals, proposals + blocks) < 1 or blocks < 0 or not 0 < decay <= 1:
    raise ValueError(
      'draft_opd: proposals must be at least 1, blocks not negative, decay in (0, 1]; got '
      f'{proposals}, {blocks}, {decay}.'
    )
  if min(kept_weight, refused_weight) < 0 or kept_weight + refused_weight <= 0:
    raise ValueError(
      'draft_opd: kept_weight and refused_weight must not be negative, and one of them above 0; got '
      f'{kept_weight}, {refused_weight}.'
    )
  if anchors not in ('blocks', 'random'):
    raise ValueError(f"draft_opd: anchors is 'blocks' or 'random', got {anchors!r}.")
  if anchors == 'random' and not blocks:
    raise ValueError('draft_opd: anchors are where blocks begin, and blocks is 0. Raise it.')
  on_kept = DivergenceTerm(divergence=kept, support=FULL)
  on_refused = DivergenceTerm(divergence=refused, support=FULL)
  total = kept_weight + refused_weight

  def plan(evidence: Evidence) -> Forks:
    *_, place = _on_text(evidence, proposals)
    begins = evidence.mask if anchors == 'random' else evidence.mask & (place == 0)
    key = jax.random.fold_in(evidence.key, 1)
    return _drawn(begins, jax.random.uniform(key, begins.shape), blocks)

  def weigh(evidence: Evidence) -> WeightedTerms:
    forks = evidence.forks
    fate = _on_text(evidence, proposals) if forks is None else _in_blocks(evidence, forks)
    was_kept, was_refused, place = fate
    weight: Float[Array, 'B R'] = jnp.where(was_refused, decay ** place.astype(float), 0.0)
    share = weight / jnp.maximum(weight.sum(), 1e-30)
    return (
      on_kept(kept_weight / total * per_token(was_kept)),
      on_refused(refused_weight / total * share),
    )

  return Method(
    rollout=rollouts.teacher(proposals=proposals),
    needs=required_by(on_kept, on_refused),
    weigh=weigh,
    claim=Converges(),
    forks=Forking(plan=plan, tokens=proposals, writers=('student',)) if blocks else None,
    paper='arXiv:2605.29343',
  )


def _drawn(begins: Mask, score: Float[AnyArray, 'B R'], blocks: int) -> Forks:
  """So many of the places of every row, those that score highest; all where there are fewer."""
  count = min(blocks, begins.shape[1])
  best, at = jax.lax.top_k(jnp.where(begins, score, -1.0), count)
  row = jnp.where(best >= 0, jnp.arange(len(begins))[:, None], -1)
  flat = lambda x: x.reshape(-1).astype(jnp.int32)
  size = row.size
  return Forks(
    row=flat(row),
    at=flat(at),
    first=jnp.full(size, -1, jnp.int32),
    writer=jnp.full(size, STUDENT, jnp.int32),
  )
