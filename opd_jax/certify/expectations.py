"""Floor 5. Expectations over whole batches of the bigram world, and fixed points of expected gradients.

Compiling dominates here, so each gradient is one small program, which takes `World.chunk` batches at a time.
"""

import functools
import itertools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from opd_jax.certify import keys
from opd_jax.certify.bigram import QUICK, Gradient, World, optimum_of, row_log_probs
from opd_jax.claims import Optimum
from opd_jax.losses.divergences import ForwardKL
from opd_jax.rollouts import RolloutMix

STEPS, RATE = 300, 0.1  # of one round of the search for the fixed point
_OPTIMISER = optax.adam(optax.cosine_decay_schedule(RATE, STEPS))


def _over_keys(gradient: Gradient, table, world: World, response):
  """Mean over keys of a gradient and of its square; what does not read the key is computed once."""
  each = jax.vmap(lambda key: gradient(table, world, response, key))(keys.stratified())
  return each.mean(axis=0), jnp.square(each).sum(axis=(1, 2, 3)).mean()


@functools.partial(jax.jit, static_argnames=('gradients',), compiler_options=QUICK)
def _sums(gradients: Sequence[Gradient], table, world: World, responses, probs):
  """Sums each gradient and its square over batches [M, B, T], weighted by their probabilities."""
  sums = []
  for gradient in gradients:
    one = functools.partial(_over_keys, gradient, table, world)
    means, squares = jax.vmap(one)(responses)
    sums.append((jnp.tensordot(probs, means, axes=1), probs @ squares))
  return sums


def _moments_of(gradients, writers: RolloutMix, table, world: World, batches, rows) -> list[Any]:
  """Sums each gradient and its square over batches, weighted by their probabilities.

  Args:
    batches: the number of each row's response, [M, B].
    rows: those whose responses are random; the others are fixed.
  """
  log_probs = np.asarray(row_log_probs(writers, table, world))
  probs = np.exp(log_probs[rows, batches[:, rows]].sum(axis=1))
  total: Any = None
  for begin in range(0, len(batches), world.chunk):
    part = slice(begin, begin + world.chunk)
    sums = _sums(tuple(gradients), table, world, world.responses[batches[part]], probs[part])
    total = sums if total is None else jax.tree.map(jnp.add, total, sums)
  return total


def moments(
  gradients: Sequence[Gradient], writers: RolloutMix, world: World
) -> list[tuple[Any, Any]]:
  """Expectation of each gradient at the world's student over every batch and the keys, and its variance."""
  rows = np.arange(len(world.questions))
  batches = np.asarray(list(itertools.product(range(len(world.responses)), repeat=len(rows))))
  pairs = _moments_of(gradients, writers, world.student, world, batches, rows)
  return [(mean, jnp.maximum(square - jnp.square(mean).sum(), 0.0)) for mean, square in pairs]


def compared(mean, variance, truth) -> tuple[float, float, float]:
  """Returns relative bias, cosine and relative deviation."""
  size, length = float(jnp.linalg.norm(truth)), float(jnp.linalg.norm(mean))
  cosine = float((mean * truth).sum()) / (size * length) if length > 0 else 0.0
  return float(jnp.linalg.norm(mean - truth)) / size, cosine, float(jnp.sqrt(variance)) / size


def of_one_question(gradient: Gradient, writers: RolloutMix, table, world: World):
  """Expectation of a gradient over the rows of the first question, while the other rows are fixed."""
  rows = np.flatnonzero(np.asarray(world.questions) == 0)
  size = len(world.responses)
  batches = np.tile(np.arange(len(world.questions)) % size, (world.chunk, 1))
  batches[:, rows] = list(itertools.product(range(size), repeat=len(rows)))
  ((mean, _),) = _moments_of((gradient,), writers, table, world, batches, rows)
  return mean[0]


@jax.jit
def _moved(table, state, mean):
  """Takes one optimiser step on the logits of the first question."""
  updates, state = _OPTIMISER.update(mean, state)
  return table.at[0].add(updates), state


def fixed_point(
  gradient: Gradient,
  writers: RolloutMix,
  world: World,
  optimum: Optimum,
  *,
  enough: float,
  rounds: int,
) -> float:
  """Descends the first question's expected gradient; returns the final KL to the optimum at the worst context, in nats.

  Args:
    enough: the search stops after a round that ends within this KL.
    rounds: maximum number of rounds, for gradients that converge slowly.
  """
  table, log_q = world.student, jax.nn.log_softmax(optimum_of(optimum, world)[0])
  distance = float('inf')
  for _ in range(rounds):
    state = _OPTIMISER.init(table[0])
    for _ in range(STEPS):
      table, state = _moved(table, state, of_one_question(gradient, writers, table, world))
    distance = float(ForwardKL()(jax.nn.log_softmax(table[0]), log_q).max())
    if distance <= enough:
      break
  return distance
