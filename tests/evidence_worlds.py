"""What tests of methods share: a random batch of several groups, where every model is an array of logits.

A method is run as training runs it: judges are scored, measures are read, evidence is cut to what was asked for,
`weigh` is one program, and its terms go through the vocabulary pass. A paper's formula is given the same logits.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from opd_jax.data.prompts import left_padded
from opd_jax.forks import Forks
from opd_jax.losses import vocabulary
from opd_jax.losses.vocab_shard import Target
from opd_jax.method import Evidence, Method, as_asked, targets_of
from opd_jax.sharding import mesh_layout
from opd_jax.types import NOBODY, STUDENT, TEACHER, Rollout, ScoreRequest, Scores, TopK

# Three groups: mixed rewards in each, one row that nobody checked, an empty row that was rewarded, and a row that
# begins with a token that the teacher wrote and that does not count.
LENGTHS = (6, 1, 0, 4, 6, 3, 5, 2)
GROUPS = (0, 0, 1, 1, 1, 2, 2, 2)
REWARDS = (1.0, 0.0, 1.0, 0.0, np.nan, 1.0, 0.0, 0.0)
PREFIXED = 6
ROWS, R, V, K = len(LENGTHS), 6, 11, 4

_RNG = np.random.RandomState(3)
STUDENT_LOGITS, TEACHER_LOGITS, REFERENCE_LOGITS = _RNG.randn(3, ROWS, R, V) * 1.5
RESPONSE = _RNG.randint(0, V, (ROWS, R)).astype(np.int32)

_WRITTEN = np.arange(R) < np.array(LENGTHS)[:, None]
_FORCED = (np.arange(ROWS)[:, None] == PREFIXED) & (np.arange(R) == 0)
MASK = _WRITTEN & ~_FORCED


def rollout_of(logp, response=RESPONSE) -> Rollout:
  """The batch of this file, written by a student with these log-probabilities."""
  prompts = left_padded([[1 + number] for number in range(ROWS)], width=2, pad=0)
  return Rollout(
    prompt=prompts._replace(group=np.array(GROUPS, np.int32)),
    response=response,
    mask=MASK,
    writer=np.where(_FORCED, TEACHER, np.where(_WRITTEN, STUDENT, NOBODY)).astype(np.int32),
    behaviour_logp=logp,
    logp=logp,
    entropy=None,
    top_k=None,
    ended_by=np.ones(ROWS, np.int32),
    version=np.zeros(ROWS, np.int32),
    reward=np.array(REWARDS, logp.dtype),
  )


@functools.partial(jax.jit, static_argnames='request')
def scores_of(logits, response, ids=None, *, request: ScoreRequest = ScoreRequest()) -> Scores:
  """What a judge tells whose logits [B, R, V] are all there is of it."""
  log = jax.nn.log_softmax(logits / request.temperature)
  pick = lambda ids: jnp.take_along_axis(log, ids, axis=-1)
  top = lambda best, ids: TopK(ids=ids, logp=best)
  asked = request.at_student_top_k
  return Scores(
    logp=pick(response[..., None])[..., 0],
    known=jnp.ones(response.shape, bool),
    entropy=-(jnp.exp(log) * log).sum(axis=-1) if request.entropy else None,
    top_k=top(*jax.lax.top_k(log, request.top_k)) if request.top_k else None,
    at_ids=TopK(ids=ids[..., :asked], logp=pick(ids[..., :asked])) if asked else None,
    hidden=logits if request.hidden else None,
    layers=jnp.stack([logits] * len(request.layers), axis=2) if request.layers else None,
  )


def from_logits(
  student, teacher, reference, response, method: Method
) -> tuple[Evidence, dict[str, Target]]:
  """Evidence of a method, and what the vocabulary pass knows of the judges; every head is the identity."""
  needs = method.needs
  own = scores_of(student, response, request=needs.of_student)
  ids = None if own.top_k is None else own.top_k.ids
  scores = {'student': own}
  for name, request in needs.judges.items():
    logits = teacher if name == 'teacher' else reference
    scores[name] = scores_of(logits, response, ids, request=request)
  evidence = Evidence.of(
    rollout_of(own.logp, response),
    scores,
    needs,
    memory=jax.tree.map(jnp.asarray, method.memory),
    step=jnp.int32(0),
    key=jax.random.key(0),
  )
  return measured(evidence, student, method), targets_of(evidence, _heads(evidence))


def _heads(evidence: Evidence) -> dict[str, Any]:
  return {
    name: jnp.eye(scores.hidden.shape[-1])
    for name, scores in evidence.scores.items()
    if scores.hidden is not None
  }


def measured(evidence: Evidence, student, method: Method) -> Evidence:
  """Evidence with the terms that the method reads before it weighs."""
  if not method.needs.measures:
    return evidence
  targets = targets_of(evidence, _heads(evidence))
  terms = tuple(method.needs.measures.items())
  values = _measured(student, evidence.rollout.response, targets, evidence.mask, terms=terms)
  return evidence._replace(measures=values)


@functools.partial(jax.jit, static_argnames='terms')
def _measured(student, response, targets, mask, *, terms):
  head = jnp.eye(student.shape[-1])
  return vocabulary.measured(
    student, head, response, targets, dict(terms), layout=mesh_layout(), mask=mask
  )


def weigh(method: Method) -> Callable[[Evidence], Any]:
  """The method's function as training makes a program of it: weighted terms of evidence."""
  return jax.jit(lambda evidence: method.weigh(as_asked(evidence, method.needs)))


@jax.jit
def through_the_pass(logits, response, targets, terms):
  """Loss, and its gradient with respect to the student's logits."""

  def loss(logits):
    head = jnp.eye(logits.shape[-1])
    return vocabulary.weighted_sum(logits, head, response, targets, terms, layout=mesh_layout())[0]

  return jax.value_and_grad(loss)(logits)


def ours(method: Method, *, student=STUDENT_LOGITS, teacher=TEACHER_LOGITS, response=RESPONSE):
  """Loss of a method, and its gradient with respect to the student's logits."""
  evidence, targets = from_logits(student, teacher, REFERENCE_LOGITS, response, method)
  return through_the_pass(student, response, targets, weigh(method)(evidence))


class Paper(NamedTuple):
  """What a formula is written in. Capitals are whole log-distributions, small letters those of the written token."""

  P: Any
  Q: Any
  R: Any
  p: Any
  q: Any
  r: Any
  mask: Any
  reward: Any


def paper(formula: Callable[[Paper], Any], *, student=STUDENT_LOGITS, teacher=TEACHER_LOGITS):
  """The same of a formula; what has no gradient in it says so itself."""

  def loss(logits):
    whole = [jax.nn.log_softmax(jnp.asarray(x)) for x in (logits, teacher, REFERENCE_LOGITS)]
    pick = lambda log: jnp.take_along_axis(log, jnp.asarray(RESPONSE)[..., None], axis=-1)[..., 0]
    return formula(Paper(*whole, *map(pick, whole), jnp.asarray(MASK), jnp.asarray(REWARDS)))

  return jax.value_and_grad(loss)(jnp.asarray(student))


def same(got, want) -> None:
  """Value to eleven digits, gradient to twelve places."""
  np.testing.assert_allclose(got[0], want[0], rtol=1e-11)
  np.testing.assert_allclose(got[1], want[1], rtol=0, atol=1e-12)


stop = jax.lax.stop_gradient


def by_token(mask, x):
  """Mean over the tokens of the batch."""
  return jnp.where(mask, x, 0).sum() / mask.sum()


def by_sequence(mask, x):
  """Mean over responses of the mean over their tokens."""
  lengths = mask.sum(1)
  return (jnp.where(mask, x, 0).sum(1) / jnp.maximum(lengths, 1)).sum() / (lengths > 0).sum()


def reinforce(of: Paper, advantage):
  """-A log p(y), token by token."""
  return by_token(of.mask, -stop(advantage) * of.p)


def at_ratio_one(of: Paper, advantage):
  """PPO in its first update: the value is -A, the gradient that of -ρ A."""
  return by_token(of.mask, -jnp.exp(of.p - stop(of.p)) * stop(advantage))


def top_kl(of: Paper, *, both: bool = True):
  """Forward KL on the teacher's top K; `both` divides the student by its mass there too."""
  best, ids = jax.lax.top_k(of.Q, K)
  own = jnp.take_along_axis(of.P, ids, -1)
  log_q = best - jax.nn.logsumexp(best, -1, keepdims=True)
  log_p = own - jax.nn.logsumexp(own, -1, keepdims=True) if both else own
  return (jnp.exp(log_q) * (log_q - log_p)).sum(-1)


def with_forks(method: Method, forks: Forks, *, length: int) -> Evidence:
  """Evidence of this batch and of forks behind it, of `length` random tokens each; a judge is logits by row."""
  rng, count, most = np.random.RandomState(11), len(forks.row), R + 1 + length
  wider = lambda x: np.pad(x, [(0, 0), (0, most - R), *[(0, 0)] * (x.ndim - 2)])
  response, column = np.zeros((count, most), np.int32), np.arange(most)
  begin = forks.at + (forks.first >= 0)
  for number, (row, at, first) in enumerate(zip(forks.row, forks.at, forks.first, strict=True)):
    front = [*RESPONSE[row, :at], *([first] if first >= 0 else [])]
    behind = rng.randint(0, V, length)
    response[number, : len(front) + length] = [*front, *behind]
  inside = (column >= forks.at[:, None]) & (column < (begin + length)[:, None])
  response = np.concatenate([wider(RESPONSE), response])
  models = {}
  for name, logits in (
    ('student', STUDENT_LOGITS), ('teacher', TEACHER_LOGITS), ('reference', REFERENCE_LOGITS)
  ):  # fmt: skip
    models[name] = np.concatenate([wider(logits), rng.randn(count, most, V)])
  own = scores_of(models['student'], response, request=method.needs.of_student)
  scores = {'student': own}
  for name, request in method.needs.judges.items():
    ids = None if own.top_k is None else own.top_k.ids
    scores[name] = scores_of(models[name], response, ids, request=request)
  prompts = left_padded([[1 + number % ROWS] for number in range(ROWS + count)], width=2, pad=0)
  group = np.array([*GROUPS, *np.array(GROUPS)[forks.row]], np.int32)
  rollout = rollout_of(np.asarray(own.logp)[:ROWS, :R])._replace(
    prompt=prompts._replace(group=group),
    response=response,
    mask=np.concatenate([wider(MASK), inside]),
    writer=np.concatenate([wider(MASK) * STUDENT, inside * forks.writer[:, None]]).astype(np.int32),
    behaviour_logp=own.logp,
    logp=own.logp,
    ended_by=np.ones(ROWS + count, np.int32),
    version=np.zeros(ROWS + count, np.int32),
    reward=np.array([*REWARDS, *[np.nan] * count]),
  )
  evidence = Evidence.of(
    rollout, scores, method.needs, step=jnp.int32(0), key=jax.random.key(0), forks=forks
  )
  return as_asked(evidence, method.needs)
