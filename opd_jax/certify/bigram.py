r"""Floor 5. The bigram world, where every expectation is a sum that can be written down, in float64.

A student, a teacher and a reference that know only the token before, V tokens, T positions: every response has a
probability one can compute. A gradient runs through its own code on each of them; the exact one is that of

    J = 1/T Σ_t Σ_c P(c before t) D( p(·|c), q(·|c) ),      P by whoever writes, and without a gradient of its own
"""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from opd_jax.inference import scorer
from opd_jax.losses import divergences, vocabulary
from opd_jax.losses.divergences import Divergence
from opd_jax.losses.terms import Term
from opd_jax.losses.vocab_shard import Target
from opd_jax.losses.vocabulary import WeightedTerm
from opd_jax.method import Evidence, Method, target_of
from opd_jax.rollouts import RolloutMix
from opd_jax.sharding import mesh_layout
from opd_jax.types import Prompts, Rollout, Scores, TopK

V, T = 5, 3  # tokens, positions
STEPS, RATE = 3000, 0.05  # of the search for the fixed point

Gradient = Callable[
  [Any, 'World', Any], Any
]  # (table, world, response [1, T]) -> gradient of the table


@dataclasses.dataclass(frozen=True)
class World:
  """Tables of logits [1 + V, V]; the first row answers for the beginning."""

  student: Any
  teacher: Any
  reference: Any

  @property
  def responses(self):
    return jnp.asarray(
      np.stack(np.meshgrid(*[range(V)] * T, indexing='ij'), axis=-1).reshape(-1, T), jnp.int32
    )


def world(seed: int = 0) -> World:
  """Tables of the given seed; the beginning has the logits of the field's test vector."""
  rng = np.random.RandomState(seed)
  tables = 1.2 * rng.randn(3, 1 + V, V)
  tables[0, 0], tables[1, 0] = [2, 1, 0, -1, 0.5], [0.2, 2, 1, -2, 0]
  return World(*map(jnp.asarray, tables))


def contexts_of(responses):
  """The row of the table that answers for each position."""
  return jnp.concatenate([jnp.zeros_like(responses[:, :1]), responses[:, :-1] + 1], axis=1)


def _log_chance(table, responses):
  """log-probability of every response under a table."""
  log = jax.nn.log_softmax(table)[contexts_of(responses)]
  return jnp.take_along_axis(log, responses[..., None], axis=-1)[..., 0].sum(axis=1)


def _chances(writers: RolloutMix, student, world: World):
  """Probability of every response under whoever writes; a data set is the teacher's text."""
  responses = world.responses
  mine, others = (jnp.exp(_log_chance(table, responses)) for table in (student, world.teacher))
  return writers.student * mine + (1 - writers.student) * others


def exact(divergence: Divergence, writers: RolloutMix, table, world: World, target=None):
  """Gradient of the objective J with respect to the table; `target` replaces the teacher's log-probabilities."""
  contexts = contexts_of(world.responses)
  chances = _chances(writers, table, world)[:, None]
  visits = jnp.zeros(table.shape[0]).at[contexts].add(jnp.broadcast_to(chances, contexts.shape)) / T
  log_q = jax.nn.log_softmax(world.teacher if target is None else target)
  return jax.grad(lambda table: (visits * divergence(jax.nn.log_softmax(table), log_q)).sum())(
    table
  )


def scores_of(logits, response, needs: scorer.Needs = scorer.Needs(), ids=None) -> Scores:
  """What a judge tells whose logits [B, T, V] are all there is of it."""
  log = jax.nn.log_softmax(jnp.asarray(logits))
  pick = lambda ids: jnp.take_along_axis(log, ids, axis=-1)
  best = jax.lax.top_k(log, needs.top_k) if needs.top_k else None
  return Scores(
    logp=pick(jnp.asarray(response)[..., None])[..., 0],
    entropy=-(jnp.exp(log) * log).sum(axis=-1) if needs.entropy else None,
    top_k=None if best is None else TopK(ids=best[1], logp=best[0]),
    at_ids=None if ids is None else pick(ids),
    hidden=jnp.asarray(logits) if needs.hidden else None,
    layers=None,
  )


def _evidence(method: Method, table, world: World, response) -> Evidence:
  """What a run would know about one response [1, T]."""
  contexts, needs = contexts_of(response), method.needs
  student = scores_of(table[contexts], response, needs.student)
  ids = student.top_k.ids if needs.at_student_top_k and student.top_k is not None else None
  one, mask = jnp.zeros((1,), jnp.int32), jnp.ones(response.shape, bool)
  rollout = Rollout(
    prompt=Prompts(tokens=one[:, None], length=one + 1, row=one, group=one), response=response, mask=mask,
    by_student=mask, behaviour_logp=student.logp, logp=student.logp, entropy=None, top_k=None, ended_by=one + 1,
    version=one, reward=jnp.zeros((1,)),
  )  # fmt: skip
  return Evidence(
    rollout=rollout,
    student=student,
    teacher=scores_of(world.teacher[contexts], response, needs.teacher, ids),
    others={name: scores_of(world.reference[contexts], response) for name in needs.others},
    step=jnp.int32(0),
    key=jax.random.key(0),
  )


def _pass(table, response, target: Target, weighted_terms: Sequence[WeightedTerm]):
  """Loss of one response through the vocabulary pass; the head is the identity, so states are logits."""
  states = table[contexts_of(response)]
  return vocabulary.weighted_sum(
    states, jnp.eye(V), response, target, weighted_terms, layout=mesh_layout()
  )[0]


def by_method(method: Method) -> Gradient:
  """(table, world, response [1, T]) -> the gradient of the method's loss."""

  def gradient(table, world: World, response):
    evidence = _evidence(method, jax.lax.stop_gradient(table), world, response)
    target, weighted_terms = target_of(evidence, jnp.eye(V)), method.weigh(evidence)
    return jax.grad(lambda table: _pass(table, response, target, weighted_terms))(table)

  return gradient


def by_term(term: Term) -> Gradient:
  """The same for a term with coefficient 1/T, the teacher known whole."""

  def gradient(table, world: World, response):
    contexts = contexts_of(response)
    logp = scores_of(world.teacher[contexts], response).logp
    weighted = WeightedTerm(term, jnp.full(response.shape, 1 / T), {'teacher_logp': logp})
    target = Target(hidden=world.teacher[contexts], head=jnp.eye(V))
    return jax.grad(lambda table: _pass(table, response, target, (weighted,)))(table)

  return gradient


def by_advantage(advantage: Callable[[Any], Any]) -> Gradient:
  """The same for a policy gradient whose advantage is a function of log u."""

  def gradient(table, world: World, response):
    contexts = contexts_of(response)
    log = lambda table: scores_of(table[contexts], response).logp
    weight = jax.lax.stop_gradient(advantage(log(world.teacher) - log(table))) / T
    return jax.grad(lambda table: -(weight * log(table)).sum())(table)

  return gradient


def by_loss(loss: Callable[[Any, Any], Any]) -> Gradient:
  """The same for a loss of whole distributions (log p, log q) -> [1, T]."""

  def gradient(table, world: World, response):
    contexts = contexts_of(response)
    log_q = jax.nn.log_softmax(world.teacher)[contexts]
    return jax.grad(lambda table: loss(jax.nn.log_softmax(table)[contexts], log_q).mean())(table)

  return gradient


def _each(gradient: Gradient, writers: RolloutMix, table, world: World):
  """Probability of every response while the student is `table`, and the gradient there."""
  chances = _chances(writers, table, world)
  return chances, jax.vmap(lambda response: gradient(table, world, response[None]))(world.responses)


@functools.partial(jax.jit, static_argnames=('gradient', 'writers'))
def _moments(gradient: Gradient, writers: RolloutMix, tables):
  """Expectation of a gradient over every response, and its variance."""
  here = World(*tables)
  chances, each = _each(gradient, writers, here.student, here)
  mean = jnp.tensordot(chances, each, axes=1)
  return mean, (chances * jnp.square(each - mean).sum(axis=(1, 2))).sum()


def moments(gradient, writers: RolloutMix, world: World) -> tuple[Any, Any]:
  return _moments(gradient, writers, (world.student, world.teacher, world.reference))


def compared(mean, variance, truth) -> tuple[float, float, float]:
  """Relative bias, cosine, relative deviation."""
  size, length = float(jnp.linalg.norm(truth)), float(jnp.linalg.norm(mean))
  cosine = float((mean * truth).sum()) / (size * length) if length > 0 else 0.0
  return float(jnp.linalg.norm(mean - truth)) / size, cosine, float(jnp.sqrt(variance)) / size


def fixed_point(method: Method, world: World) -> float:
  """Follows the expected gradient to its end: KL from the closed form there, at the worst context."""
  gradient, optimiser = by_method(method), optax.adam(optax.cosine_decay_schedule(RATE, STEPS))

  @jax.jit
  def end(tables):
    here = World(*tables)

    def step(_, carry):
      table, state = carry
      updates, state = optimiser.update(
        jnp.tensordot(*_each(gradient, method.rollout, table, here), axes=1), state
      )
      return optax.apply_updates(table, updates), state

    return jax.lax.fori_loop(0, STEPS, step, (here.student, optimiser.init(here.student)))[0]

  log_p = jax.nn.log_softmax(end((world.student, world.teacher, world.reference)))
  optimum = method.optimum(jax.nn.log_softmax(world.teacher), jax.nn.log_softmax(world.reference))
  return float(divergences.forward_kl()(log_p, jax.nn.log_softmax(optimum)).max())
