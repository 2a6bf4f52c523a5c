"""Floor 1. The vocabulary axis of a tile of tokens, whole or cut over devices, and what a support may ask of it."""

import dataclasses
from collections.abc import Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from opd_jax.losses.rest_rules import OutsideMass
from opd_jax.losses.supports import Compared
from opd_jax.types import AnyArray, TopK


class Target(NamedTuple):
  """What is known of a judge: any of these; a term that needs more says so."""

  top_k: TopK | None = None  # its own best [B, R, C]
  at_ids: TopK | None = None  # its log-probabilities at ids it was asked about [B, R, C]
  hidden: Float[AnyArray, 'B R Dq'] | None = None  # with `head`, everything
  head: Float[AnyArray, 'Dq V'] | None = None


def without_heads(targets: Mapping[str, Target]) -> dict[str, Target]:
  """What of targets has rows."""
  return {name: target._replace(head=None) for name, target in targets.items()}


def with_heads(targets: Mapping[str, Target], whole: Mapping[str, Target]) -> dict[str, Target]:
  """The same with the heads of `whole`."""
  return {name: target._replace(head=whole[name].head) for name, target in targets.items()}


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
  """A tile's view of the student and one judge, as `supports.View` wants it."""

  vocabulary: VocabShard
  log_p: Array
  log_q: Array | None
  target: Target
  judge: str = 'teacher'

  @property
  def size(self):
    return self.vocabulary.whole

  def need(self, what: str) -> Array:
    """The judge's whole distribution, or an error that says how to get it."""
    if self.log_q is None:
      raise ValueError(
        f'vocabulary: {what} needs the whole distribution of the {self.judge}, and its hidden states were not given. '
        'Ask for them, ScoreRequest(hidden=True), or use a support that it can answer for: its own top k, or the '
        "student's."
      )
    return self.log_q

  def tempered(self, temperature: float) -> 'TileView':
    """Both models with their logits divided; only whole distributions can be."""
    if temperature == 1.0:
      return self
    log_q = self.need(f'temperature {temperature:g}')
    soft = lambda log: self.vocabulary.log_softmax(log / temperature)
    return TileView(self.vocabulary, soft(self.log_p), soft(log_q), Target(), self.judge)

  def teacher_top_k(self, k: int) -> TopK:
    top = self.target.top_k
    if top is None:
      what = f'the best {k} of a judge that was not asked for them'
      return self.vocabulary.top_k(self.need(what), k)
    if top.ids.shape[-1] < k:
      raise ValueError(
        f'vocabulary: a top {k} of the {self.judge} is wanted, {top.ids.shape[-1]} entries were scored.'
      )
    return TopK(*(part[..., :k] for part in top))

  def student_top_k(self, k: int) -> TopK:
    asked = self.target.at_ids
    if asked is not None and asked.ids.shape[-1] >= k:
      return TopK(*(part[..., :k] for part in asked))
    log_q = self.need(f"the student's top {k}")
    ids = self.vocabulary.top_k(self.log_p, k).ids
    return TopK(ids=ids, logp=self.vocabulary.pick(log_q, ids))

  def columns(self, ids: tuple[int, ...]) -> TopK:
    wanted = jnp.broadcast_to(jnp.asarray(ids), (self.log_p.shape[0], len(ids)))
    log_q = self.need('a support of fixed columns')
    return TopK(ids=wanted, logp=self.vocabulary.pick(log_q, wanted))

  def outside(self, compared: Compared) -> OutsideMass:
    """The mass outside some entries, of every side that is here whole."""
    shard = self.vocabulary
    mass = lambda log: shard.logsumexp(shard.without(log, compared.ids, compared.valid))[:, 0]
    return OutsideMass(
      log_p=mass(self.log_p), log_q=None if self.log_q is None else mass(self.log_q)
    )
