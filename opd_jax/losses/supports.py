"""Floor 1. Which entries of the vocabulary are compared, and how the rest is closed. Both are always explicit.

A support asks a `Reader` for entries; the reader knows whether the teacher came as hidden states (every
entry), as its top k, or as log-probabilities at ids that were asked for. Closings:

    tail          one more entry that holds the rest of each side: an exact coarse-graining, never above the whole
    renorm        each side divided by its mass on the support: blind to what lies outside
    teacher_only  the teacher divided by its mass, the student's rest kept: pulls the student into the support
    stopped       -Σ p · stop_gradient(w): a truncated sum whose gradient is that of the kept entries
    raw           the plain truncated sum. Biased by the gradient of the kept mass; here to be certified as bad
"""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from opd_jax.losses import divergences
from opd_jax.losses.divergences import Divergence
from opd_jax.types import TopK


class Entries(NamedTuple):
  """What is compared at each position."""

  ids: Int[Array, '*N C']
  log_q: Float[Array, '*N C']
  valid: Bool[Array, '*N C']


class OutsideMass(NamedTuple):
  """log of the mass outside the entries, where somebody has summed it; then it is an input with a gradient of its own.

  None: one minus what is inside. That difference is off by the rounding of one, 1e-7 in float32: all there is of the
  tail of a peaked model.
  """

  log_p: Float[Array, '*N'] | None = None
  log_q: Float[Array, '*N'] | None = None


RestRule = Callable[[Divergence, Array, Array, OutsideMass], Array]


@runtime_checkable
class Reader(Protocol):
  """Where a support finds its entries. Both sides come best first, with the *teacher's* log-probabilities."""

  @property
  def size(self) -> Any:
    """Entries of the vocabulary."""
    ...

  def teacher_top_k(self, k: int) -> TopK: ...

  def student_top_k(self, k: int) -> TopK: ...

  def columns(self, ids: tuple[int, ...]) -> TopK: ...


@jax.custom_jvp
def _remainder(log: Float[Array, '*N C']) -> Float[Array, '*N 1']:
  """log( 1 - Σ exp log )."""
  kept = jnp.minimum(_mass(log), -jnp.finfo(log.dtype).eps)
  return jnp.log(-jnp.expm1(kept))


@_remainder.defjvp
def _remainder_jvp(primals, tangents):
  (log,), (slope,) = primals, tangents
  rest = _remainder(log)
  return rest, -jnp.sum(jnp.exp(log) * slope, axis=-1, keepdims=True) / jnp.exp(rest)


def _rests(log_p, log_q, rest: OutsideMass) -> tuple[Float[Array, '*N 1'], Float[Array, '*N 1']]:
  """log of the mass outside, of either side."""
  p = _remainder(log_p) if rest.log_p is None else rest.log_p[..., None]
  if rest.log_q is not None:
    return p, rest.log_q[..., None]
  # Where nothing lies outside, nothing of a sparse teacher does, whatever its rounding says.
  return p, jnp.where(p == -jnp.inf, -jnp.inf, _remainder(log_q))


def _mass(log: Float[Array, '*N C']) -> Float[Array, '*N 1']:
  """log Σ exp; zero for an empty support, which then divides by one."""
  empty = (log == -jnp.inf).all(axis=-1, keepdims=True)
  return jax.nn.logsumexp(jnp.where(empty, -jnp.log(log.shape[-1]), log), axis=-1, keepdims=True)


def _tail(divergence: Divergence, log_p, log_q, rest: OutsideMass):
  pairs = zip((log_p, log_q), _rests(log_p, log_q, rest), strict=True)
  return divergence(*(jnp.concatenate(pair, axis=-1) for pair in pairs))


def _renorm(divergence: Divergence, log_p, log_q, rest: OutsideMass):
  return divergence(log_p - _mass(log_p), log_q - _mass(log_q))


def _teacher_only(divergence: Divergence, log_p, log_q, rest: OutsideMass):
  log_p = jnp.concatenate([log_p, _rests(log_p, log_q, rest)[0]], axis=-1)
  log_q = jnp.concatenate([log_q - _mass(log_q), jnp.full_like(log_p[..., :1], -jnp.inf)], axis=-1)
  return divergence(log_p, log_q)


def _raw(divergence: Divergence, log_p, log_q, rest: OutsideMass):
  return divergences.raw(divergence)(log_p, log_q)


def _stopped(divergence: Divergence, log_p, log_q, rest: OutsideMass):
  # Σ -p · w has the value of the truncated sum for reverse KL; p · w is `pull`, finite where w is not.
  pull = jax.lax.stop_gradient(divergence.pull(log_p, log_q))
  alive = jnp.where(log_p == -jnp.inf, 0.0, log_p)
  return -jnp.sum(pull * jnp.exp(alive - jax.lax.stop_gradient(alive)), axis=-1)


def tail() -> RestRule:
  return _tail


def renorm() -> RestRule:
  return _renorm


def teacher_only() -> RestRule:
  return _teacher_only


def stopped() -> RestRule:
  return _stopped


def raw() -> RestRule:
  return _raw


class Asks(NamedTuple):
  """What a support wants to know of the teacher."""

  everything: bool = False
  top_k: int = 0  # its own best
  at_student_top_k: int = 0  # at the student's best


@dataclasses.dataclass(frozen=True)
class Support:
  """The whole vocabulary, which needs no closing; subclasses choose entries and say how to close."""

  @property
  def name(self) -> str:
    return 'full'

  @property
  def asks(self) -> Asks:
    return Asks(everything=True)

  @property
  def wants_rest(self) -> bool:
    """Whether the mass outside the entries matters."""
    return False

  def check(self, divergence: Divergence) -> None:
    """Refuses a divergence that has no finite value here."""

  def value(
    self, divergence: Divergence, log_p: Array, entries: Entries, rest: OutsideMass
  ) -> Array:
    """The divergence on chosen entries; log_p are the student's log-probabilities there."""
    raise NotImplementedError

  def entries(self, reader: Reader) -> Entries | None:
    """None: every entry."""
    return None


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Chosen(Support):
  close: RestRule

  @property
  def wants_rest(self) -> bool:
    return self.close in (_tail, _teacher_only)

  def check(self, divergence: Divergence) -> None:
    if self.close is not _teacher_only:
      return
    with jax.ensure_compile_time_eval():
      finite = bool(jnp.isfinite(divergence.entry(jnp.log(0.5), jnp.array(-jnp.inf))))
    if not finite:
      raise ValueError(
        f'supports: {divergence.name} is infinite where the teacher has no mass, and closing with teacher_only says '
        'that it has none outside the support. Close with tail or renorm, or take forward_kl or a JSD.'
      )

  def value(
    self, divergence: Divergence, log_p: Array, entries: Entries, rest: OutsideMass
  ) -> Array:
    log_p = jnp.where(entries.valid, log_p, -jnp.inf)
    return self.close(divergence, log_p, jnp.where(entries.valid, entries.log_q, -jnp.inf), rest)


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Top(_Chosen):
  k: int

  def __post_init__(self):
    if self.k < 1:
      raise ValueError(f'supports: a support needs at least one entry, got k={self.k}.')

  @property
  def name(self) -> str:
    kind = type(self).__name__.removeprefix('_').removesuffix('Top').lower()
    return f'{kind} top {self.k}, {self.close.__name__.strip("_")}'


def _all(top: TopK, reader: Reader) -> Entries:
  """Ids outside the vocabulary (a judge that had fewer to tell) are no entries."""
  ids, log_q = jnp.asarray(top.ids), jnp.asarray(top.logp)
  return Entries(ids=ids, log_q=log_q, valid=(ids >= 0) & (ids < reader.size))


def _among(ids: Int[Array, '*N C'], others: Int[Array, '*N M']) -> Bool[Array, '*N C']:
  return (ids[..., :, None] == others[..., None, :]).any(axis=-1)


class _TeacherTop(_Top):
  @property
  def asks(self) -> Asks:
    return Asks(top_k=self.k)

  def entries(self, reader: Reader) -> Entries:
    return _all(reader.teacher_top_k(self.k), reader)


class _StudentTop(_Top):
  @property
  def asks(self) -> Asks:
    return Asks(at_student_top_k=self.k)

  def entries(self, reader: Reader) -> Entries:
    return _all(reader.student_top_k(self.k), reader)


class _UnionTop(_Top):
  @property
  def asks(self) -> Asks:
    return Asks(top_k=self.k, at_student_top_k=self.k)

  def entries(self, reader: Reader) -> Entries:
    teacher, student = (
      _all(top(self.k), reader) for top in (reader.teacher_top_k, reader.student_top_k)
    )
    new = student._replace(valid=student.valid & ~_among(student.ids, teacher.ids))
    return Entries(*(jnp.concatenate(pair, axis=-1) for pair in zip(teacher, new, strict=True)))


class _IntersectionTop(_Top):
  @property
  def asks(self) -> Asks:
    return Asks(top_k=self.k, at_student_top_k=self.k)

  def entries(self, reader: Reader) -> Entries:
    teacher, student = _all(reader.teacher_top_k(self.k), reader), reader.student_top_k(self.k)
    return teacher._replace(valid=teacher.valid & _among(teacher.ids, jnp.asarray(student.ids)))


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Columns(_Chosen):
  ids: tuple[int, ...]

  def __post_init__(self):
    if not self.ids or len(set(self.ids)) < len(self.ids):
      raise ValueError(f'supports: columns are at least one entry, each once, got {self.ids}.')

  @property
  def name(self) -> str:
    return f'{len(self.ids)} columns, {self.close.__name__.strip("_")}'

  def entries(self, reader: Reader) -> Entries:
    return _all(reader.columns(self.ids), reader)


def full() -> Support:
  """Every entry: exact, and it needs the teacher's hidden states and head."""
  return Support()


def teacher_top_k(k: int, *, close: RestRule) -> Support:
  """The k entries the teacher likes best."""
  return _TeacherTop(k=k, close=close)


def student_top_k(k: int, *, close: RestRule) -> Support:
  """The k entries the student likes best; with a sparse teacher, those it was asked about."""
  return _StudentTop(k=k, close=close)


def union_top_k(k: int, *, close: RestRule) -> Support:
  """The best k of either side."""
  return _UnionTop(k=k, close=close)


def intersection_top_k(k: int, *, close: RestRule) -> Support:
  """Those of the teacher's best k that are among the student's best k."""
  return _IntersectionTop(k=k, close=close)


def columns(ids: tuple[int, ...], *, close: RestRule) -> Support:
  """The same entries at every position."""
  return _Columns(ids=tuple(ids), close=close)
