"""Floor 1. The vocabulary axis of a tile of tokens, whole or cut over devices, and what a support may ask of it."""

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from opd_jax.losses.supports import Entries, OutsideMass
from opd_jax.types import AnyArray, TopK


class Target(NamedTuple):
  """What is known of the teacher: any of these; a term that needs more says so."""

  top_k: TopK | None = None  # its own best [B, R, C]
  at_ids: TopK | None = None  # its log-probabilities at ids it was asked about [B, R, C]
  hidden: Float[AnyArray, 'B R Dq'] | None = None  # with `head`, everything
  head: Float[AnyArray, 'Dq V'] | None = None


@dataclasses.dataclass(frozen=True)
class VocabShard:
  """The columns of the vocabulary that this device holds, and the sums over all of them."""

  axes: tuple[str, ...]
  size: int  # columns here

  @property
  def offset(self):
    return jax.lax.axis_index(self.axes) * self.size if self.axes else 0

  def everywhere(self, x):
    return jax.lax.psum(x, self.axes) if self.axes else x

  def total(self, x: Float[Array, 'N V']) -> Float[Array, ' N']:
    return self.everywhere(x.sum(axis=-1))

  def logsumexp(self, x: Float[Array, 'N V']) -> Float[Array, 'N 1']:
    top = x.max(axis=-1, keepdims=True)
    top = jax.lax.pmax(top, self.axes) if self.axes else top
    top = jnp.where(jnp.isfinite(top), top, 0.0)
    return jnp.log(self.total(jnp.exp(x - top))[:, None]) + top

  def log_softmax(self, logits: Float[Array, 'N V']) -> Float[Array, 'N V']:
    return logits - self.logsumexp(logits)

  @property
  def whole(self):
    """Columns on all devices."""
    return self.size * jax.lax.axis_size(self.axes) if self.axes else self.size

  def _local(self, ids, valid: Bool[Array, 'N C'] | bool = True):
    """Column of each id here; `size`, which is none, where it is not here."""
    local = ids - self.offset
    return jnp.where((local >= 0) & (local < self.size) & valid, local, self.size)

  def pick(self, x: Float[Array, 'N V'], ids: Int[AnyArray, 'N C']) -> Float[Array, 'N C']:
    return self.everywhere(
      jnp.take_along_axis(x, self._local(ids), axis=-1, mode='fill', fill_value=0.0)
    )

  def scatter(
    self, into: Float[Array, 'N V'], ids: Int[AnyArray, 'N C'], x: Float[Array, 'N C']
  ) -> Float[Array, 'N V']:
    return into.at[jnp.arange(into.shape[0])[:, None], self._local(ids)].add(x, mode='drop')

  def without(
    self, log: Float[Array, 'N V'], ids: Int[AnyArray, 'N C'], valid: Bool[Array, 'N C']
  ) -> Float[Array, 'N V']:
    """The same with no mass at these entries."""
    return log.at[jnp.arange(log.shape[0])[:, None], self._local(ids, valid)].set(
      -jnp.inf, mode='drop'
    )

  def best(self, x: Float[Array, 'N V']) -> Bool[Array, 'N V']:
    """Where the largest entry stands, or several that are equal. (An argmax is far slower on a CPU.)"""
    top = x.max(axis=-1, keepdims=True)
    return x == (jax.lax.pmax(top, self.axes) if self.axes else top)

  def top_k(self, x: Float[Array, 'N V'], k: int) -> TopK:
    if k > self.whole:
      raise ValueError(f'vocabulary: a top {k} is wanted of {self.whole} entries.')
    best, ids = jax.lax.top_k(x, min(k, self.size))
    if self.axes:
      best, ids = (
        jax.lax.all_gather(part, self.axes, axis=1, tiled=True)
        for part in (best, ids + self.offset)
      )
      best, order = jax.lax.top_k(best, k)
      ids = jnp.take_along_axis(ids, order, axis=-1)
    return TopK(ids=ids, logp=best)


@dataclasses.dataclass(frozen=True)
class TileView:
  """A tile's view of both models, as `supports.Reader` wants it."""

  vocabulary: VocabShard
  log_p: Array
  log_q: Array | None
  target: Target

  @property
  def size(self):
    return self.vocabulary.whole

  def need(self, what: str) -> Array:
    if self.log_q is None:
      raise ValueError(
        f'vocabulary: {what} needs the whole distribution of the teacher, and its hidden states were not given. Ask '
        'for them, Needs(teacher=scorer.Needs(hidden=True)), or use a support the teacher can answer for: its own top '
        'k, or ids.'
      )
    return self.log_q

  def teacher_top_k(self, k: int) -> TopK:
    known = self.target.top_k
    if known is None:
      return self.vocabulary.top_k(
        self.need(f'the best {k} of a teacher that was not asked for them'), k
      )
    if known.ids.shape[-1] < k:
      raise ValueError(
        f'vocabulary: a top {k} of the teacher is wanted, {known.ids.shape[-1]} entries were scored.'
      )
    return TopK(*(part[..., :k] for part in known))

  def student_top_k(self, k: int) -> TopK:
    known = self.target.at_ids
    if known is not None and known.ids.shape[-1] >= k:
      return TopK(*(part[..., :k] for part in known))
    log_q = self.need(f"the student's top {k}")
    ids = self.vocabulary.top_k(self.log_p, k).ids
    return TopK(ids=ids, logp=self.vocabulary.pick(log_q, ids))

  def columns(self, ids: tuple[int, ...]) -> TopK:
    known = jnp.broadcast_to(jnp.asarray(ids), (self.log_p.shape[0], len(ids)))
    return TopK(
      ids=known, logp=self.vocabulary.pick(self.need('a support of fixed columns'), known)
    )

  def rest(self, entries: Entries) -> OutsideMass:
    """The mass outside some entries, of every side that is here whole."""
    whole = self.vocabulary
    outside = lambda log: whole.logsumexp(whole.without(log, entries.ids, entries.valid))[:, 0]
    return OutsideMass(
      log_p=outside(self.log_p), log_q=None if self.log_q is None else outside(self.log_q)
    )
