"""Floor 5. Gradients of one batch of the bigram world: of a method through its own code, and of bare estimators."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from opd_jax.certify.bigram import Gradient, World, scores_of, written
from opd_jax.losses import vocabulary
from opd_jax.losses.terms import Term, WeightedTerm
from opd_jax.losses.vocab_shard import Target
from opd_jax.method import Evidence, Method, as_asked, targets_of
from opd_jax.sharding import mesh_layout
from opd_jax.types import DATA, ENDINGS, STUDENT, Prompts, Rollout, Scores


def _scores(method: Method, table, world: World, response) -> dict[str, Scores]:
  """Scores of every judge; all but teacher and student have the reference's logits."""
  tables = {'student': table, 'teacher': world.teacher}
  needs = method.needs
  scores = {'student': scores_of(world.logits(table, response), response, needs.of_student)}
  for name, request in needs.judges.items():
    top = scores['student'].top_k
    ids = top.ids if top is not None and request.at_student_top_k else None
    logits = world.logits(tables.get(name, world.reference), response)
    scores[name] = scores_of(logits, response, request, ids)
  return scores


def _rollout(method: Method, table, world: World, response) -> Rollout:
  """The batch as a run records it: log-probabilities are those of each token's writer, NaN for data."""
  writer, counts = written(method.rollout, world)
  student_logp, teacher_logp = (
    scores_of(world.logits(logits, response), response).logp for logits in (table, world.teacher)
  )
  not_student = jnp.where(writer == DATA, jnp.nan, teacher_logp)
  logp = jnp.where(writer == STUDENT, student_logp, not_student)
  rows = np.arange(len(world.questions), dtype=np.int32)
  prompt = Prompts(
    tokens=rows[:, None] * 0, length=rows * 0 + 1, row=rows, group=np.asarray(world.questions)
  )
  return Rollout(
    prompt=prompt, response=response, mask=jnp.asarray(counts), writer=writer, behaviour_logp=logp,
    logp=logp, entropy=None, top_k=None, ended_by=rows * 0 + ENDINGS.index('stop'),
    version=rows * 0, reward=world.reward(response),
  )  # fmt: skip


def _summed(table, world: World, response, targets, weighted_terms: Sequence[WeightedTerm]):
  """Loss of one batch through the vocabulary pass; the head is the identity, so states are logits."""
  states, head = world.logits(table, response), jnp.eye(world.size)
  layout = mesh_layout()
  return vocabulary.weighted_sum(states, head, response, targets, weighted_terms, layout=layout)[0]


def by_method(method: Method) -> Gradient:
  """The gradient of a method's loss: scored, measured, weighed and summed as in a run."""

  def gradient(table, world: World, response, key):
    fixed = jax.lax.stop_gradient(table)
    scores = _scores(method, fixed, world, response)
    rollout = _rollout(method, fixed, world, response)
    memory = jax.tree.map(jnp.asarray, method.memory)
    evidence = Evidence.of(rollout, scores, method.needs, memory=memory, step=jnp.int32(0), key=key)
    head = jnp.eye(world.size)
    targets = targets_of(evidence, dict.fromkeys(scores, head))
    if method.needs.measures:
      measures = vocabulary.measured(
        world.logits(fixed, response), head, response, targets, method.needs.measures,
        layout=mesh_layout(), mask=rollout.mask,
      )  # fmt: skip
      evidence = evidence._replace(measures=measures)
    weighted_terms = method.weigh(as_asked(evidence, method.needs))
    return jax.grad(_summed)(table, world, response, targets, weighted_terms)

  return gradient


def by_term(term: Term) -> Gradient:
  """The gradient of a term that weighs all tokens equally and has the teacher's whole distribution."""

  def gradient(table, world: World, response, key):
    del key
    teacher = world.logits(world.teacher, response)
    inputs = {'teacher_logp': scores_of(teacher, response).logp}
    weighted = term(
      jnp.full(response.shape, 1 / response.size),
      **{name: inputs[name] for name in term.inputs_wanted},
    )
    targets = {'teacher': Target(hidden=teacher, head=jnp.eye(world.size))}
    return jax.grad(_summed)(table, world, response, targets, (weighted,))

  return gradient


def by_advantage(advantage: Callable[[Any], Any]) -> Gradient:
  """The gradient of a policy-gradient loss whose advantage is a function of log u."""

  def gradient(table, world: World, response, key):
    del key
    log = lambda table: scores_of(world.logits(table, response), response).logp
    weight = jax.lax.stop_gradient(advantage(log(world.teacher) - log(table)))
    return jax.grad(lambda table: -(weight * log(table)).mean())(table)

  return gradient


def by_loss(loss: Callable[[Any, Any], Any]) -> Gradient:
  """The gradient of a loss of whole distributions (log p, log q) -> [B, T]."""

  def gradient(table, world: World, response, key):
    del key
    log = lambda table: jax.nn.log_softmax(world.logits(table, response))
    return jax.grad(lambda table: loss(log(table), log(world.teacher)).mean())(table)

  return gradient
