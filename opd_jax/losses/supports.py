"""Floor 1. Which entries of the vocabulary are compared, and how the rest is closed. Both are always explicit.

`Support(entries=TeacherTopK(32), rest=Tail())`: entries say which ids: they compose with `|` (union) and `&`
(intersection), and ask a `TileView` for them, which knows whether the teacher came as hidden states (every entry), as
its top k, or as log-probabilities at ids that were asked for. How the remainder is closed is said by `rest_rules`.
"""

from typing import Any, NamedTuple, Protocol, runtime_checkable

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from opd_jax.losses.divergences import Divergence
from opd_jax.losses.rest_rules import OutsideMass, RestRule
from opd_jax.static import static
from opd_jax.types import ScoreRequest, TopK


class Compared(NamedTuple):
  """What is compared at each position."""

  ids: Int[Array, '*N C']
  log_q: Float[Array, '*N C']
  valid: Bool[Array, '*N C']


@runtime_checkable
class View(Protocol):
  """Where entries are found. Both sides come best first, with the *judge's* log-probabilities."""

  @property
  def size(self) -> Any:
    """Entries of the vocabulary."""
    ...

  def teacher_top_k(self, k: int) -> TopK: ...

  def student_top_k(self, k: int) -> TopK: ...

  def columns(self, ids: tuple[int, ...]) -> TopK: ...


class Entries:
  """Which ids are compared."""

  @property
  def name(self) -> str:
    raise NotImplementedError

  @property
  def request(self) -> ScoreRequest:
    """What is asked of the judge for them."""
    raise NotImplementedError

  def find(self, view: View) -> Compared | None:
    """None: every entry."""
    raise NotImplementedError

  def __or__(self, other: 'Entries') -> 'Union':
    return Union(self, other)

  def __and__(self, other: 'Entries') -> 'Intersection':
    return Intersection(self, other)


def _check_k(who: str, k: int) -> None:
  if not isinstance(k, int) or k < 1:
    raise ValueError(f'{who}: at least one entry is compared, got k={k!r}.')


def _all(top: TopK, view: View) -> Compared:
  """Ids outside the vocabulary (a judge that had fewer to tell) are no entries."""
  ids, log_q = jnp.asarray(top.ids), jnp.asarray(top.logp)
  return Compared(ids=ids, log_q=log_q, valid=(ids >= 0) & (ids < view.size))


def _among(ids: Int[Array, '*N C'], others: Int[Array, '*N M'], valid) -> Bool[Array, '*N C']:
  return ((ids[..., :, None] == others[..., None, :]) & valid[..., None, :]).any(axis=-1)


@static
class Full(Entries):
  """Every entry: exact, and it needs the judge's hidden states and head."""

  @property
  def name(self) -> str:
    return 'full'

  @property
  def request(self) -> ScoreRequest:
    return ScoreRequest(hidden=True)

  def find(self, view: View) -> None:
    return None


@static(kw_only=False)
class TeacherTopK(Entries):
  """The k entries the judge likes best."""

  k: int

  def __post_init__(self):
    _check_k('TeacherTopK', self.k)

  @property
  def name(self) -> str:
    return f'teacher top {self.k}'

  @property
  def request(self) -> ScoreRequest:
    return ScoreRequest(top_k=self.k)

  def find(self, view: View) -> Compared:
    return _all(view.teacher_top_k(self.k), view)


@static(kw_only=False)
class StudentTopK(Entries):
  """The k entries the student likes best; with a sparse judge, those it was asked about."""

  k: int

  def __post_init__(self):
    _check_k('StudentTopK', self.k)

  @property
  def name(self) -> str:
    return f'student top {self.k}'

  @property
  def request(self) -> ScoreRequest:
    return ScoreRequest(at_student_top_k=self.k)

  def find(self, view: View) -> Compared:
    return _all(view.student_top_k(self.k), view)


@static(kw_only=False)
class Columns(Entries):
  """The same entries at every position; they need the judge's hidden states and head."""

  ids: tuple[int, ...]

  def __post_init__(self):
    object.__setattr__(self, 'ids', tuple(self.ids))
    if not self.ids or len(set(self.ids)) < len(self.ids):
      raise ValueError(f'Columns: at least one entry, each once, got {self.ids}.')

  @property
  def name(self) -> str:
    return f'{len(self.ids)} columns'

  @property
  def request(self) -> ScoreRequest:
    return ScoreRequest(hidden=True)

  def find(self, view: View) -> Compared:
    return _all(view.columns(self.ids), view)


@static(kw_only=False)
class SameRank(Entries):
  """The student's k best, each beside the judge's entry of the same rank: which tokens these are does not matter."""

  k: int

  def __post_init__(self):
    _check_k('SameRank', self.k)

  @property
  def name(self) -> str:
    return f'first {self.k} ranks'

  @property
  def request(self) -> ScoreRequest:
    return ScoreRequest(top_k=self.k, at_student_top_k=self.k, across='own')

  def find(self, view: View) -> Compared:
    own, others = _all(view.student_top_k(self.k), view), view.teacher_top_k(self.k)
    there = others.logp > -jnp.inf  # whatever it is called, or has no name here
    return Compared(ids=own.ids, log_q=jnp.asarray(others.logp), valid=own.valid & there)


def _both(one: Entries, other: Entries, view: View) -> tuple[Compared, Compared]:
  left, right = one.find(view), other.find(view)
  if left is None or right is None:
    raise ValueError('supports: every entry is compared already; nothing can be joined to Full().')
  return left, right


@static(kw_only=False)
class Union(Entries):
  """The entries of either, each once."""

  one: Entries
  other: Entries

  @property
  def name(self) -> str:
    return f'{self.one.name} or {self.other.name}'

  @property
  def request(self) -> ScoreRequest:
    return self.one.request | self.other.request

  def find(self, view: View) -> Compared:
    left, right = _both(self.one, self.other, view)
    new = right._replace(valid=right.valid & ~_among(right.ids, left.ids, left.valid))
    return Compared(*(jnp.concatenate(pair, axis=-1) for pair in zip(left, new, strict=True)))


@static(kw_only=False)
class Intersection(Entries):
  """The entries of the first that are among those of the second."""

  one: Entries
  other: Entries

  @property
  def name(self) -> str:
    return f'{self.one.name} and {self.other.name}'

  @property
  def request(self) -> ScoreRequest:
    return self.one.request | self.other.request

  def find(self, view: View) -> Compared:
    left, right = _both(self.one, self.other, view)
    return left._replace(valid=left.valid & _among(left.ids, right.ids, right.valid))


def best(k: int, *, of: str) -> Entries:
  """The k best entries of the student or of the teacher, or those that are among the best of both, or of either."""
  student, teacher = StudentTopK(k), TeacherTopK(k)
  sides = {
    'student': student,
    'teacher': teacher,
    'both': student & teacher,
    'either': student | teacher,
  }
  if of not in sides:
    raise ValueError(f'supports: the best entries are of {sorted(sides)}, got {of!r}.')
  return sides[of]


@static
class Support:
  """Entries, and how the rest is closed; the whole vocabulary has no rest.

  Args:
    entries: which ids are compared.
    rest: what is made of the mass outside them; None only where there is none.
  """

  entries: Entries
  rest: RestRule | None = None

  def __post_init__(self):
    if (self.rest is None) != isinstance(self.entries, Full):
      raise ValueError(
        f'Support: {self.entries.name} entries with rest={self.rest}. Say how the rest is closed (Tail(), '
        'Renormalised(), TeacherOnly(), Stopped()); only Full() has none.'
      )
    if isinstance(self.entries, SameRank) and self.reads_outside:
      raise ValueError(
        f'Support: the {self.entries.name} are other tokens on either side, so nothing is outside of both; '
        f'{self.rest} cannot close them. Take Unclosed() or Renormalised().'
      )

  @property
  def name(self) -> str:
    return self.entries.name if self.rest is None else f'{self.entries.name}, {self.rest.label}'

  @property
  def request(self) -> ScoreRequest:
    """What a judge is asked for."""
    return self.entries.request

  @property
  def reads_outside(self) -> bool:
    return self.rest is not None and self.rest.reads_outside

  def check(self, divergence: Divergence) -> None:
    """Refuses a divergence that has no finite value here."""
    if self.rest is not None:
      self.rest.check(divergence)

  def value(
    self, divergence: Divergence, log_p: Array, compared: Compared, outside: OutsideMass
  ) -> Array:
    """The divergence on chosen entries; log_p are the student's log-probabilities there."""
    assert self.rest is not None
    log_p = jnp.where(compared.valid, log_p, -jnp.inf)
    log_q = jnp.where(compared.valid, compared.log_q, -jnp.inf)
    return self.rest.value(divergence, log_p, log_q, outside)


FULL = Support(entries=Full())
