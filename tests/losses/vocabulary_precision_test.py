"""The tiled pass in float32 and bfloat16: how many digits stay."""

import dense_reference
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from vocabulary_cases import CASES, K, V, tiled

from opd_jax.losses import vocabulary
from opd_jax.losses.vocab_shard import Target


@pytest.fixture(autouse=True)
def float64():
  with jax.enable_x64(True):
    yield


def test_a_rest_of_any_size_keeps_its_gradient_in_float32():
  """Forward KL with a tail where the student is all but certain: the rest must not drown in the kept mass."""
  teacher = jnp.zeros((1, 2, V)).at[..., :K].set(2.0)

  def gradient(kind, certain):
    states = jnp.zeros((1, 2, V)).at[..., 3].set(certain)
    term = CASES['forward tail'](jnp.ones((1, 2), kind))
    target = Target(hidden=teacher.astype(kind), head=jnp.eye(V, dtype=kind))
    response = jnp.zeros((1, 2), jnp.int32)
    head = jnp.eye(V, dtype=kind)
    found = tiled(states.astype(kind), head, response, {'teacher': target}, (term,))[1]
    return np.asarray(found[0], np.float64)

  for certain in (8.0, 16.0, 24.0):
    exact = gradient('float64', certain)
    assert np.linalg.norm(gradient('float32', certain) - exact) <= 1e-5 * np.linalg.norm(exact)


DIVERGENCES = ('forward full', 'reverse full', 'jsd full', 'teacher tail', 'forward tail')


@pytest.mark.parametrize('name', DIVERGENCES)
def test_bfloat16_keeps_three_digits_of_value_and_two_of_gradient(name):
  """Against float64 on the same bfloat16 inputs; logits up to ±60, divergences from 1e-6 to 30 nats and more."""
  reference = jax.jit(jax.value_and_grad(dense_reference.loss, argnums=(0, 1)))
  for distance in (1e-3, 0.3, 2.0, 60.0):
    hidden, head, response, target, term = _perturbed(name, distance)
    (value, _), gradients = tiled(hidden, head, response, {'teacher': target}, (term,))
    high = lambda x: jnp.asarray(np.asarray(x, np.float64))
    target = Target(hidden=high(target.hidden), head=high(target.head))
    exact_term = term._replace(coefficient=high(term.coefficient))
    want, exact = reference(high(hidden), high(head), response, {'teacher': target}, (exact_term,))
    assert abs(float(value) / float(want) - 1) <= 1e-3, (distance, float(value), float(want))
    for got, right in zip(gradients, exact, strict=True):
      error = np.linalg.norm(np.asarray(got, np.float64) - right) / np.linalg.norm(right)
      assert error <= 1e-2, (distance, error)


def _perturbed(name, distance):
  """A student and its teacher, whose logits are as far away as `distance` says."""
  rng = np.random.RandomState(7)
  width, size, rows = 64, 512, 32
  head = rng.randn(width, size)
  states = rng.randn(1, rows, width) * (12 / np.sqrt(width))  # logits up to about 60
  noise = rng.randn(1, rows, size) * (distance if distance < 10 else 0)
  states_q = rng.randn(1, rows, width) * (12 / np.sqrt(width)) if distance > 10 else states
  # The teacher's head has extra columns of states, so that a perturbation of any size survives bfloat16.
  low = lambda x: jnp.asarray(x, jnp.bfloat16)
  target = Target(
    hidden=low(np.concatenate([states_q, np.eye(rows)[None]], axis=-1)),
    head=low(np.concatenate([head, noise[0]], axis=0)),
  )
  term = CASES[name](jnp.ones((1, rows), jnp.float32) / rows)
  return low(states), low(head), jnp.zeros((1, rows), jnp.int32), target, term


def test_the_default_tile_comes_from_shapes_alone():
  assert vocabulary.tile_of(64, 151_936) == 64
  assert vocabulary.tile_of(4096, 151_936) >= 1024
