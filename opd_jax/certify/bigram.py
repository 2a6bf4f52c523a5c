r"""Floor 5. The bigram world, where every expectation is a sum that can be written down, in float64.

A student, a teacher and a reference that know only the question and the token before, V tokens, T positions: every
response, and so every whole batch, has a probability one can compute. A gradient runs through its own code on each
batch; the exact one is that of

    J = 1/n Σ_rows Σ_t Σ_c P(c before t) D( p(·|c), q(·|c) ),      n tokens that count,

with P by whoever writes the row, and without a gradient of its own.
"""

import dataclasses
import functools
import itertools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from opd_jax.claims import Optimum
from opd_jax.losses.divergences import Divergence
from opd_jax.ramps import whole_at
from opd_jax.rollouts import RolloutMix
from opd_jax.types import DATA, NOBODY, STUDENT, TEACHER, ScoreRequest, Scores, TopK

# Programs here run for milliseconds; compiling them is what takes time.
QUICK = {'xla_backend_optimization_level': 0}

# (table, world, response [B, T], key) -> gradient of the table
Gradient = Callable[[Any, 'World', Any, Any], Any]


@dataclasses.dataclass(frozen=True)
class World:
  """Tables of logits [Q, 1 + V, V], by question and by the token before; the first row answers for the beginning."""

  student: Any
  teacher: Any
  reference: Any
  questions: tuple[int, ...]  # of every row of a batch; rows of one question are a group
  verified: tuple[bool, ...]  # which rows a verifier looks at
  length: int  # of every response

  @property
  def size(self) -> int:
    """Entries of the vocabulary."""
    return self.student.shape[-1]

  @property
  def responses(self) -> np.ndarray:
    """Every response of a row, [N, T]."""
    tokens = itertools.product(range(self.size), repeat=self.length)
    return np.asarray(list(tokens), np.int32)

  @property
  def chunk(self) -> int:
    """Batches at a time: those in which the rows of one question write everything, and the others stand still."""
    return len(self.responses) ** self.questions.count(0)

  def logits(self, table, response):
    """What a table answers at each position of a batch, [B, T, V]."""
    return table[np.asarray(self.questions)[:, None], contexts_of(response)]

  def reward(self, response):
    """1 where a row ends in the token that is its question's number, else 0; NaN where nobody verifies."""
    right = (response[:, -1] == np.asarray(self.questions)).astype(float)
    return jnp.where(np.asarray(self.verified), right, jnp.nan)


jax.tree_util.register_dataclass(
  World,
  data_fields=['student', 'teacher', 'reference'],
  meta_fields=['questions', 'verified', 'length'],
)


def single() -> World:
  """One row of three of five tokens, for estimators; its beginning has the logits of the field's test vector."""
  tables = 1.2 * np.random.RandomState(0).randn(3, 1, 6, 5)
  tables[0, 0, 0], tables[1, 0, 0] = [2, 1, 0, -1, 0.5], [0.2, 2, 1, -2, 0]
  return World(*map(jnp.asarray, tables), questions=(0,), verified=(False,), length=3)


def batched(seed: int = 1) -> World:
  """Two questions, two samples of each, one of the four never verified: 6561 batches of two of three tokens."""
  tables = 1.2 * np.random.RandomState(seed).randn(3, 2, 4, 3)
  rows, verified = (0, 0, 1, 1), (True, True, True, False)
  return World(*map(jnp.asarray, tables), questions=rows, verified=verified, length=2)


def contexts_of(response):
  """The row of the table that answers for each position."""
  return jnp.concatenate([jnp.zeros_like(response[:, :1]), response[:, :-1] + 1], axis=1)


def written(writers: RolloutMix, world: World) -> tuple[np.ndarray, np.ndarray]:
  """Who writes each token of a batch, and which tokens count, [B, T]: as a run deals rows at step 0."""
  shape = (len(world.questions), world.length)
  student, teacher, _ = writers.deal(shape[0])
  rows = np.where(student, STUDENT, np.where(teacher, TEACHER, DATA))
  writer = np.broadcast_to(rows[:, None], shape).copy()
  stop = shape[1] if writers.stop_after is None else whole_at(writers.stop_after, 0)
  prefix = 0 if writers.prefix is None else whole_at(writers.prefix, 0)
  position = np.arange(shape[1])
  ahead, behind = student[:, None] & (position < prefix), student[:, None] & (position >= stop)
  writer[ahead], writer[behind] = TEACHER, NOBODY
  return writer, ~(ahead | behind)


@functools.partial(jax.jit, static_argnames=('writers',))
def row_log_probs(writers: RolloutMix, table, world: World):
  """log-probability of every response in every row by its writer, [B, N]; a data set is the teacher's text."""
  responses, (writer, _) = jnp.asarray(world.responses), written(writers, world)
  contexts = contexts_of(responses)
  each = []
  for row, question in enumerate(world.questions):
    own, other = (
      jnp.take_along_axis(
        jax.nn.log_softmax(logits[question])[contexts], responses[..., None], axis=-1
      )[..., 0]
      for logits in (table, world.teacher)
    )
    by_student = (writer[row] == STUDENT) | (writer[row] == NOBODY)
    each.append(jnp.where(by_student, own, other).sum(axis=1))
  return jnp.stack(each)


@functools.partial(jax.jit, static_argnames=('divergences', 'writers'), compiler_options=QUICK)
def exact_of_each(
  divergences: Sequence[Divergence], writers: RolloutMix, table, world: World, target=None
) -> list[Any]:
  """Gradients of the objective J with respect to the table; `target` replaces the teacher's logits."""
  probs, (_, counts) = jnp.exp(row_log_probs(writers, table, world)), written(writers, world)
  contexts = contexts_of(jnp.asarray(world.responses))
  visits = jnp.zeros(table.shape[:2])
  for row, question in enumerate(world.questions):
    weight = probs[row][:, None] * counts[row] / counts.sum()
    visits = visits.at[question, contexts].add(weight)
  log_q = jax.nn.log_softmax(world.teacher if target is None else target)
  value = lambda table, each: (visits * each(jax.nn.log_softmax(table), log_q)).sum()
  return [jax.grad(value)(table, each) for each in divergences]


def exact(divergence: Divergence, writers: RolloutMix, table, world: World, target=None):
  """The same of one divergence."""
  return exact_of_each((divergence,), writers, table, world, target)[0]


def _at(log, ids):
  """log-probabilities at ids; -inf at those outside the vocabulary."""
  return jnp.take_along_axis(log, jnp.asarray(ids), axis=-1, mode='fill', fill_value=-jnp.inf)


def _best(log, k: int) -> TopK:
  """The likeliest k; where the vocabulary has fewer, ids outside it."""
  size = log.shape[-1]
  logp, ids = jax.lax.top_k(log, min(k, size))
  fill = lambda x, value: jnp.pad(
    x, (*[(0, 0)] * (x.ndim - 1), (0, max(k - size, 0))), constant_values=value
  )
  return TopK(ids=fill(ids, size), logp=fill(logp, -jnp.inf))


def scores_of(
  logits: Any, response: Any, request: ScoreRequest = ScoreRequest(), ids: Any = None
) -> Scores:
  """What a judge tells whose logits [B, R, V] are all there is of it.

  Args:
    logits: its states too, under a head that is the identity; after every layer the same.
    response: the written tokens.
    request: what is asked.
    ids: the student's likeliest tokens, where the judge is asked about them.
  """
  logits = jnp.asarray(logits)
  log = jax.nn.log_softmax(logits / request.temperature)
  layers = jnp.stack([logits] * len(request.layers), axis=-2) if request.layers else None
  return Scores(
    logp=_at(log, jnp.asarray(response)[..., None])[..., 0],
    known=jnp.ones(log.shape[:2], bool),
    entropy=-(jnp.exp(log) * log).sum(axis=-1) if request.entropy else None,
    top_k=_best(log, request.top_k) if request.top_k else None,
    at_ids=None if ids is None else TopK(ids=ids, logp=_at(log, ids)),
    hidden=logits if request.hidden else None,
    layers=layers,
  )


def optimum_of(optimum: Optimum, world: World):
  """The logits that a claim names."""
  return optimum(jax.nn.log_softmax(world.teacher), jax.nn.log_softmax(world.reference))
