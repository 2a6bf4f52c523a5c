r"""Floor 2. What a teacher with a tokenizer of its own says, by position and by token of the student.

The teacher's tokens w_1 … w_n and the student's y_1 … y_m write one text. Where y_i ends, the teacher has ended some
tokens, and its last one w may still go on for all that the student has said: y_i = 1 and w = 1 may become 12, unless
the student would have written 12 as a token of its own. With S, the tokens that w may be by then,

    F_i = Σ log q over the tokens before w  +  log Σ { q(w') : w' in S },        log q(y_i) = F_i - F_{i-1}

so over a response they sum to the teacher's log-probability of it, and that w has ended costs the token that shows it.
With closed ends S is w alone wherever a token of the teacher ends, and every chunk has the sum of its tokens. With one
tokenizer S is w alone everywhere: log q(y_i) is the teacher's own, to the last bit.

Over the next token of the student, q is Σ of two parts: tokens of S that go on, and, if w has ended, what the teacher
writes next; each is given to the student's longest token that its further bytes begin with (byte-prefix
marginalisation, arXiv:2607.22334, which knows closed ends only). A token that goes on behind the end of the teacher's
has its own exp log q(y_i), taken from the entry that held its first piece. What no token of the student can write is
the rest: entries and rest sum to one.
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from opd_jax.inference.scorer import tile_of
from opd_jax.models import transformer
from opd_jax.models.config import SAME_ROUNDING
from opd_jax.types import AnyArray, ScoreRequest, Scores, TopK


class Places(NamedTuple):
  """Where each token of the student stands among the N of the teacher's: see `data.alignment.Aligned`."""

  chunk: Int[AnyArray, 'B R']
  place: Int[AnyArray, 'B R']
  offset: Int[AnyArray, 'B R']
  within: Int[AnyArray, 'B R']
  depth: Int[AnyArray, 'B R']  # 0: the text has not begun, or is not aligned any more
  since: Int[AnyArray, 'B R']  # -1: nothing is said by how the student began
  whole: Bool[AnyArray, 'B R']
  held: Int[AnyArray, 'B R']  # the teacher's token there
  low: Int[AnyArray, 'B R']  # tokens that begin with what is written of it: from here
  high: Int[
    AnyArray, 'B R'
  ]  # up to here, in the order of their bytes; low: none, but the token itself
  by: Int[AnyArray, 'B R']  # the student's token that ended there
  spans: Bool[AnyArray, 'B R']
  head: Int[AnyArray, 'B R']  # the student's token that has the mass of the teacher's
  last: Int[AnyArray, 'B R']
  owner: Int[AnyArray, 'B N']  # R: none
  others: Int[AnyArray, 'B N']  # the chunk of each; R: none


class End(NamedTuple):
  """Where a token of the student ends, of a tile of them."""

  depth: Int[Array, ' N']
  since: Int[Array, ' N']
  whole: Bool[Array, ' N']
  held: Int[Array, ' N']
  low: Int[Array, ' N']
  high: Int[Array, ' N']
  by: Int[Array, ' N']


class Tables(NamedTuple):
  """What is known of two vocabularies; `columns` of the student, also the number that stands for none of them."""

  rank: Int[
    AnyArray, ' V'
  ]  # of the teacher's tokens in the order of their bytes; -1: it writes none
  prefixes: Int[AnyArray, 'O V']  # see `data.alignment.Pair`
  same: Int[AnyArray, ' V']


@functools.partial(jax.jit, static_argnames=('request', 'columns'), compiler_options=SAME_ROUNDING)
def read(
  hidden: Float[AnyArray, 'B N D'],
  head: Float[AnyArray, 'D V'],
  logp: Float[AnyArray, 'B N'],
  places: Places,
  tables: Tables,
  response: Int[AnyArray, 'B R'],
  ids: Int[AnyArray, 'B R C'] | None = None,
  *,
  request: ScoreRequest,
  columns: int,
) -> Scores:
  """Scores by the student's positions, from the teacher's states and log-probabilities of its own tokens.

  Args:
    hidden: the states that predict each of the teacher's tokens.
    head: of the teacher.
    logp: of its tokens.
    places, tables: where tokens stand, and what they write.
    response: the student's tokens.
    ids: tokens of the student whose log-probabilities are wanted.
    request: which scores.
    columns: entries of the student's vocabulary.
  """
  places, tables = jax.tree.map(jnp.asarray, (places, tables))
  at = _Reading(hidden, head.astype(hidden.dtype), tables, request.temperature)
  ended = at.ended(places)
  conditional = _summed(logp, places.owner, ended.shape[1]) + ended - _before(ended)
  known = places.chunk >= 0
  scores = Scores(logp=conditional, known=known, chunk=places.chunk)
  if (
    request.entropy or request.at_student_top_k or (request.top_k and request.across == 'projected')
  ):
    entropy, top_k, at_ids = at.projected(places, response, conditional, ids, request, columns)
    scores = scores._replace(
      entropy=entropy if request.entropy else None, top_k=top_k, at_ids=at_ids
    )
  if request.top_k and request.across != 'projected':
    scores = scores._replace(top_k=at.own(places, logp, request, columns))
  return scores


def _summed(
  x: Float[AnyArray, 'B N'], into: Int[AnyArray, 'B N'], size: int
) -> Float[Array, 'B R']:
  rows = jnp.arange(len(x))[:, None]
  return jnp.zeros((len(x), size), x.dtype).at[rows, into].add(x, mode='drop')


def _before(x: AnyArray) -> Array:
  """What was before each token; nothing before the first."""
  return jnp.pad(jnp.asarray(x)[:, :-1], ((0, 0), (1, 0)))


def _end(places: Places) -> End:
  return End(*(getattr(places, name) for name in End._fields))


class _Reading(NamedTuple):
  """A teacher's states with the head that makes logits of them, a tile of tokens at a time."""

  hidden: Any
  head: Any
  tables: Tables
  temperature: float

  def _tiled(self, one, places: tuple[AnyArray, ...], *inputs):
    """A function of logits [tile, V] at some places and of inputs, over every position of the student."""
    rows = places[0].shape
    size = rows[0] * rows[1]
    tile = tile_of(self.head.shape[1], size)
    inside = lambda place: jnp.clip(place, 0, self.hidden.shape[1] - 1)[..., None]
    states = [jnp.take_along_axis(self.hidden, inside(place), axis=1) for place in places]
    flat = lambda x: x.reshape(size, *x.shape[2:])
    cut = lambda x: jnp.pad(x, ((0, -size % tile), *((0, 0),) * (x.ndim - 1)))
    pieces = jax.tree.map(lambda x: cut(flat(x)).reshape(-1, tile, *x.shape[2:]), (states, inputs))
    warm = lambda logits: logits / self.temperature if self.temperature != 1.0 else logits

    def with_logits(piece):
      states, inputs = piece
      return one(*(warm(transformer.logits_of(state, self.head)) for state in states), *inputs)

    found = jax.lax.map(with_logits, pieces)
    return jax.tree.map(
      lambda x: x.reshape(-1, *x.shape[2:])[:size].reshape(*rows, *x.shape[2:]), found
    )

  def _row(self, offset: Int[Array, ' N'], columns) -> Int[Array, 'N V']:
    """For each of the teacher's tokens from an offset on the student's longest token that it begins with."""
    deepest = len(self.tables.prefixes) - 1
    cells = self.tables.prefixes[jnp.clip(offset, 0, deepest)]
    return jnp.where((offset > deepest)[:, None], columns, cells)

  def _open(self, end: End) -> Bool[AnyArray, 'N V']:
    """S: the tokens that the teacher's may be where the student's ends."""
    rank = self.tables.rank
    begins = (rank >= end.low[:, None]) & (rank < end.high[:, None])
    meant = (end.since < 0)[:, None] | (self._row(end.since, -1) == end.by[:, None])
    return (begins & meant) | (end.whole[:, None] & (jnp.arange(len(rank)) == end.held[:, None]))

  def ended(self, places: Places) -> Float[Array, 'B R']:
    """F_i less the log-probabilities of the tokens that have ended: log Σ_S q, over q(w) where w has."""

    def one(logits, end):
      mass = jax.nn.logsumexp(jnp.where(self._open(end), logits, -jnp.inf), axis=-1)
      there = jnp.take_along_axis(logits, end.held[:, None], axis=-1)[:, 0]
      part = mass - jnp.where(end.whole, there, jax.nn.logsumexp(logits, axis=-1))
      return jnp.where(end.depth > 0, part, 0.0)

    nothing = lambda: jnp.zeros(
      places.place.shape, jnp.promote_types(jnp.float32, self.hidden.dtype)
    )
    some = lambda: self._tiled(one, (places.within,), _end(places))
    doubtful = (places.depth > 0) & (~places.whole | (places.high > places.low))
    return jax.lax.cond(doubtful.any(), some, nothing)

  def projected(self, places: Places, response, conditional, ids, request: ScoreRequest, columns):
    """Entropy, top k and log-probabilities at ids of the distribution over the student's tokens."""
    before = jax.tree.map(_before, (places.within, _end(places)))
    inputs = places.offset, places.spans, places.head, response, conditional
    wanted = () if ids is None else (jnp.asarray(ids),)
    size = request.top_k if request.across == 'projected' else 0

    def one(behind, ahead, end, offset, spans, head, token, mass, *at):
      probs = self._mixed(behind, ahead, end, offset, columns)
      rows = jnp.arange(len(probs))
      own = jnp.where(spans, jnp.exp(mass.astype(probs.dtype)), 0.0)
      probs = probs.at[rows, token].add(own).at[rows, head].add(-own)
      log = jnp.log(jnp.maximum(probs, 0.0))
      entropy = -jnp.where(probs > 0, probs * log, 0.0).sum(axis=-1)
      best = _best(log[:, :columns], None, size, columns) if size else None
      if not at:
        return entropy, best, None
      inside = jnp.where((at[0] >= 0) & (at[0] < columns), at[0], columns)
      return entropy, best, TopK(ids=at[0], logp=jnp.take_along_axis(log, inside, axis=-1))

    return self._tiled(one, (before[0], places.place), before[1], *inputs, *wanted)

  def _mixed(self, behind, ahead, end: End, offset, columns: int) -> Float[Array, 'N W']:
    """Entries and the rest: tokens that go on where the student's last one ended, and those that begin there."""
    rows, started = jnp.arange(len(behind))[:, None], end.depth > 0
    nothing = jnp.zeros((len(behind), columns + 1), behind.dtype)
    kept = jnp.where(self._open(end) | ~started[:, None], behind, -jnp.inf)
    weight = jnp.exp(kept - jax.nn.logsumexp(kept, axis=-1, keepdims=True))
    there = jnp.take_along_axis(weight, end.held[:, None], axis=-1)[:, 0]
    done = jnp.where(started, jnp.where(end.whole, there, 0.0), 1.0)  # the chance that w has ended
    is_it = (jnp.arange(behind.shape[1]) == end.held[:, None]) & end.whole[:, None]
    weight = jnp.where(is_it | ~started[:, None], 0.0, weight)
    probs = nothing.at[rows, self._row(end.depth, columns)].add(weight)
    further = done[:, None] * jax.nn.softmax(ahead, axis=-1)
    begins = started & ~end.whole
    return probs.at[rows, self._row(jnp.where(begins, 0, offset), columns)].add(further)

  def own(self, places: Places, logp, request: ScoreRequest, columns: int) -> TopK:
    """The teacher's own best tokens, each with the student's token that writes the same."""
    joint = request.across == 'joint'
    place = places.last if joint else places.place
    before = jnp.zeros(place.shape, logp.dtype)
    if joint:  # of the chunk's tokens before its last
      chunks = _summed(logp, places.others, place.shape[1])
      rows, there = jnp.arange(len(place))[:, None], jnp.maximum(places.chunk, 0)
      before = chunks[rows, there] - logp[rows, jnp.minimum(place, logp.shape[1] - 1)]

    def one(logits, earlier):
      log = jax.nn.log_softmax(logits) + earlier[:, None].astype(logits.dtype)
      return _best(log, self.tables.same, request.top_k, columns)

    return self._tiled(one, (place,), before)


def _best(log: Float[Array, 'N W'], names: Any, k: int, columns: int) -> TopK:
  """The best k entries; one that has no mass, or no name, has an id outside the vocabulary."""
  best, found = jax.lax.top_k(log, min(k, log.shape[-1]))
  found = found if names is None else names[found]  # -1: the student has none
  more = ((0, 0), (0, max(k - best.shape[-1], 0)))
  best, found = (
    jnp.pad(best, more, constant_values=-jnp.inf),
    jnp.pad(found, more, constant_values=columns),
  )
  return TopK(ids=jnp.where(best == -jnp.inf, columns, found), logp=best)
