"""Floor 5. Checks the hand-written gradients of the vocabulary pass against finite differences, term by term."""

import dataclasses
import functools
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree

from opd_jax.certify.bigram import QUICK
from opd_jax.losses import vocabulary
from opd_jax.losses.terms import DivergenceTerm, Term, WeightedTerm
from opd_jax.losses.vocab_shard import Target
from opd_jax.sharding import mesh_layout

ROWS, LENGTH, WIDTH, SIZE = 2, 3, 4, 5
STEP = 1e-5


def _inputs(number) -> dict[str, Any]:
  """Everything that a term may read, by name; one of the candidate ids is outside the vocabulary."""
  logp = jnp.full((ROWS, LENGTH), -1.0)
  ids = jnp.asarray([[[0, 3], [1, 1], [4, 2]], [[2, SIZE], [3, 0], [1, 4]]], jnp.int32)
  return {
    'advantage': number(ROWS, LENGTH),
    'teacher_logp': logp,
    'behaviour_logp': logp - 0.6,
    'hidden': number(ROWS, LENGTH, WIDTH),
    'ids': ids,
    'weights': number(*ids.shape),
    'advantages': number(*ids.shape),
    'behaviour_logps': jnp.full(ids.shape, -1.6),
  }


@functools.partial(jax.jit, compiler_options=QUICK)
def _gradients(point, response, targets, weighted: WeightedTerm):
  """The gradient of a term in states and head, and its central differences along every coordinate."""

  def loss(flat):
    states, head = unravel(flat)
    return vocabulary.weighted_sum(
      states, head, response, targets, (weighted,), layout=mesh_layout()
    )[0]

  flat, unravel = ravel_pytree(point)
  moved = STEP * jnp.eye(flat.size)
  points = jnp.concatenate([flat[None], flat + moved, flat - moved])
  values, gradients = jax.vmap(jax.value_and_grad(loss))(points)
  ahead, behind = jnp.split(values[1:], 2)
  return gradients[0], (ahead - behind) / (2 * STEP)


def agrees(term: Term) -> bool:
  """Whether the gradient of a term in states and head is that of finite differences.

  A ratio has no gradient: finite differences then omit it, and its value multiplies the coefficient.
  """
  rng = np.random.RandomState(5)
  number = lambda *shape: jnp.asarray(rng.randn(*shape))
  response = jnp.asarray([[0, 3, 1], [2, 2, 4]], jnp.int32)
  judge = lambda: Target(hidden=number(ROWS, LENGTH, LENGTH), head=number(LENGTH, SIZE))
  targets, inputs = {'teacher': judge(), 'reference': judge()}, _inputs(number)
  coefficient = jnp.abs(number(ROWS, LENGTH)) + 0.1
  weighted = term(coefficient, **{name: inputs[name] for name in term.inputs_wanted})
  point = number(ROWS, LENGTH, WIDTH), number(WIDTH, SIZE)
  analytic, differences = _gradients(point, response, targets, weighted)
  if isinstance(term, DivergenceTerm) and term.ratio is not None:
    log_p = jax.nn.log_softmax(point[0] @ point[1])
    logp = jnp.take_along_axis(log_p, response[..., None], axis=-1)[..., 0]
    ratio = term.ratio.value(logp, inputs['behaviour_logp'])
    plain = dataclasses.replace(term, ratio=None)(coefficient * ratio)
    _, differences = _gradients(point, response, targets, plain)
  try:
    chex.assert_trees_all_close(analytic, differences, atol=1e-7, rtol=1e-6)
  except AssertionError:
    return False
  return True
