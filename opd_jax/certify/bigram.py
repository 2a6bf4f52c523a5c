r"""Floor 5. The bigram world, where every expectation is a sum that can be written down, in float64.

Student, teacher and reference condition on the question and the previous token only, with V tokens and T positions:
every response, and so every batch, has a probability that can be computed. An estimator runs its own code on each
batch. The exact gradient is that of

    J = 1/n Σ_rows Σ_t Σ_c P(c before t) D( p(·|c), q(·|c) ),      n tokens that count,

where P(c before t) is the probability under the row's writer, held constant.
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
from opd_jax.rollouts import RolloutMix
from opd_jax.rollouts.mix import whole
from opd_jax.types import DATA, NOBODY, STUDENT, TEACHER, ScoreRequest, Scores, TopK

# Programs here run for milliseconds, so compiling them dominates.
QUICK = {'xla_backend_optimization_level': 0}

# (table, world, response [B, T], key) -> gradient of the table
Gradient = Callable[[Any, 'World', Any, Any], Any]


@dataclasses.dataclass(frozen=True)
class World:
  """Tables of logits [Q, 1 + V, V], by question and previous token; row 0 is that of the first position."""

  student: Any
  teacher: Any
  reference: Any
  questions: tuple[int, ...]  # of every row of a batch; rows of one question are a group
  verified: tuple[bool, ...]  # which rows have a verifier
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
    """Batches of one call: all responses of the rows of one question, while the other rows are fixed."""
    return len(self.responses) ** self.questions.count(0)

  def logits(self, table, response):
    """Logits of a table at each position of a batch, [B, T, V]."""
    return table[np.asarray(self.questions)[:, None], contexts_of(response)]

  def reward(self, response):
    """1 where a row ends in the token that is its question's number, else 0; NaN without a verifier."""
    right = (response[:, -1] == np.asarray(self.questions)).astype(float)
    return jnp.where(np.asarray(self.verified), right, jnp.nan)


jax.tree_util.register_dataclass(
  World,
  data_fields=['student', 'teacher', 'reference'],
  meta_fields=['questions', 'verified', 'length'],
)


def single() -> World:
  """One row of three tokens, vocabulary of five, for estimators; position 0 has the field's test vector as logits."""
  tables = 1.2 * np.random.RandomState(0).randn(3, 1, 6, 5)
  tables[0, 0, 0], tables[1, 0, 0] = [2, 1, 0, -1, 0.5], [0.2, 2, 1, -2, 0]
  return World(*map(jnp.asarray, tables), questions=(0,), verified=(False,), length=3)


def batched(seed: int = 1) -> World:
  """Two questions with two samples each, one without a verifier; two tokens, vocabulary of three: 6561 batches."""
  tables = 1.2 * np.random.RandomState(seed).randn(3, 2, 4, 3)
  rows, verified = (0, 0, 1, 1), (True, True, True, False)
  return World(*map(jnp.asarray, tables), questions=rows, verified=verified, length=2)


def contexts_of(response):
  """Returns the row of the table that holds each position's logits."""
  return jnp.concatenate([jnp.zeros_like(response[:, :1]), response[:, :-1] + 1], axis=1)


def written(writers: RolloutMix, world: World) -> tuple[np.ndarray, np.ndarray]:
  """Returns the writer of each token of a batch and whether it counts, [B, T], as a run assigns rows at step 0."""
  shape = (len(world.questions), world.length)
  student, teacher, _ = writers.deal(shape[0])
  rows = np.where(student, STUDENT, np.where(teacher, TEACHER, DATA))
  writer = np.broadcast_to(rows[:, None], shape).copy()
  stop = shape[1] if writers.stop_after is None else whole(writers.stop_after)
  prefix = 0 if writers.prefix is None else whole(writers.prefix)
  position = np.arange(shape[1])
  ahead, behind = student[:, None] & (position < prefix), student[:, None] & (position >= stop)
  writer[ahead], writer[behind] = TEACHER, NOBODY
  return writer, ~behind & (~ahead | writers.prefix_counts)


@functools.partial(jax.jit, static_argnames=('writers',))
def row_log_probs(writers: RolloutMix, table, world: World):
  """Log-probability of every response in every row under its writer, [B, N]; data sets are drawn from the teacher."""
  responses, (writer, _) = jnp.asarray(world.responses), written(writers, world)
  contexts = contexts_of(responses)
  each = []
  for row, question in enumerate(world.questions):
    student_logp, teacher_logp = (
      jnp.take_along_axis(
        jax.nn.log_softmax(logits[question])[contexts], responses[..., None], axis=-1
      )[..., 0]
      for logits in (table, world.teacher)
    )
    by_student = (writer[row] == STUDENT) | (writer[row] == NOBODY)
    each.append(jnp.where(by_student, student_logp, teacher_logp).sum(axis=1))
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
  """Returns the exact gradient for one divergence; see `exact_of_each`."""
  return exact_of_each((divergence,), writers, table, world, target)[0]


def _at(log, ids):
  """log-probabilities at ids; -inf at those outside the vocabulary."""
  return jnp.take_along_axis(log, jnp.asarray(ids), axis=-1, mode='fill', fill_value=-jnp.inf)


def _best(log, k: int) -> TopK:
  """Top k entries; where the vocabulary has fewer, the rest are ids outside it."""
  size = log.shape[-1]
  logp, ids = jax.lax.top_k(log, min(k, size))
  fill = lambda x, value: jnp.pad(
    x, (*[(0, 0)] * (x.ndim - 1), (0, max(k - size, 0))), constant_values=value
  )
  return TopK(ids=fill(ids, size), logp=fill(logp, -jnp.inf))


def scores_of(
  logits: Any, response: Any, request: ScoreRequest = ScoreRequest(), ids: Any = None
) -> Scores:
  """Scores of a judge that is nothing but logits [B, R, V].

  Args:
    logits: also its hidden states, after every layer; the head is the identity.
    response: the written tokens.
    request: which scores to return.
    ids: the student's top k, where the request includes the judge's log-probabilities there.
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
