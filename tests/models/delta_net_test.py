"""The delta-net: chunks equal tokens one by one, and a row's state ignores what is not its own."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import FAMILIES

from opd_jax.models import cache as caches
from opd_jax.models import delta_net, presets, transformer
from opd_jax.planning import flops
from opd_jax.sharding import mesh_layout

ROWS, HEADS, KEY, VALUE = 2, 3, 5, 4


hybrid = FAMILIES['qwen3_5']


def drawn(length, seed=0):
  """Inputs in float64, with decays from hardly any to all in one token."""
  random = np.random.RandomState(seed)
  unit = lambda x: x / np.linalg.norm(x, axis=-1, keepdims=True)
  shape = (ROWS, length, HEADS)
  return delta_net.Given(
    query=random.standard_normal((*shape, KEY)),
    key=unit(random.standard_normal((*shape, KEY))),
    value=random.standard_normal((*shape, VALUE)),
    decay=-np.exp(random.uniform(-6, 3, shape)),
    rate=random.uniform(0, 1, shape),
  )


def by_hand(given, memory):
  """The recurrence of the docstring, in float64."""
  out = []
  for t in range(given.query.shape[1]):
    query, key, value, decay, rate = (x[:, t] for x in given)
    memory = memory * np.exp(decay)[..., None, None]
    known = np.einsum('bnkv,bnk->bnv', memory, key)
    memory = memory + np.einsum('bnk,bnv->bnkv', key, rate[..., None] * (value - known))
    out.append(np.einsum('bnkv,bnk->bnv', memory, query))
  return np.stack(out, axis=1), memory


@pytest.mark.parametrize('length, chunk', [(1, 64), (7, 64), (8, 4), (37, 8), (130, 64)])
def test_chunks_are_the_recurrence(length, chunk):
  given = drawn(length)
  memory = np.random.RandomState(1).standard_normal((ROWS, HEADS, KEY, VALUE))
  want, last = by_hand(given, memory)
  with jax.enable_x64(True):
    got, end = delta_net.in_chunks(given, jnp.asarray(memory), chunk=chunk)
  np.testing.assert_allclose(got, want, rtol=0, atol=1e-11)
  np.testing.assert_allclose(end, last, rtol=0, atol=1e-11)


def test_a_step_is_the_recurrence():
  given, memory = drawn(1), np.ones((ROWS, HEADS, KEY, VALUE))
  want, last = by_hand(given, memory)
  with jax.enable_x64(True):
    got, end = delta_net.step(given, jnp.asarray(memory))
  np.testing.assert_allclose(got, want, rtol=0, atol=1e-12)
  np.testing.assert_allclose(end, last, rtol=0, atol=1e-12)


def test_its_gradient_is_that_of_the_recurrence():
  given = drawn(11)
  memory = np.zeros((ROWS, HEADS, KEY, VALUE))
  weights = np.random.RandomState(2).standard_normal((ROWS, 11, HEADS, VALUE))

  def loop(given):
    out, state = [], jnp.asarray(memory)
    for t in range(11):
      one, state = delta_net.step(delta_net.Given(*(x[:, t : t + 1] for x in given)), state)
      out.append(one)
    return (jnp.concatenate(out, 1) * weights).sum()

  with jax.enable_x64(True):
    chunks = lambda given: (
      delta_net.in_chunks(given, jnp.asarray(memory), chunk=4)[0] * weights
    ).sum()
    given = jax.tree.map(jnp.asarray, given)
    for got, want in zip(jax.grad(chunks)(given), jax.grad(loop)(given), strict=True):
      np.testing.assert_allclose(got, want, rtol=0, atol=1e-10)


def test_columns_that_are_not_a_rows_own_leave_no_trace(single):
  """Pieces with other counts for each row give the states and hidden states of the rows by themselves."""
  config = dataclasses.replace(hybrid(), unroll=True)
  params = transformer.init(config, single, jax.random.key(0))
  model = transformer.bind(config, single, params)
  tokens = np.random.RandomState(0).randint(0, 320, (2, 12)).astype(np.int32)
  lengths = np.array([5, 11], np.int32)
  cache = caches.empty(config, single, length=16, start=jnp.zeros(2, jnp.int32))
  pieces = []
  for begin in (0, 4, 8):
    count = np.clip(lengths - begin, 0, 4).astype(np.int32)
    hidden, cache = model.extend(
      jnp.asarray(tokens[:, begin : begin + 4]), cache, jnp.asarray(count)
    )
    pieces.append(hidden)
  np.testing.assert_array_equal(cache.end, lengths)
  for row, length in enumerate(lengths.tolist()):
    alone = caches.empty(config, single, length=16, start=jnp.zeros(1, jnp.int32))
    want, alone = model.extend(jnp.asarray(tokens[row : row + 1, :length]), alone)
    got = np.concatenate(pieces, axis=1)[row, :length]
    np.testing.assert_allclose(got, want[0], atol=1e-5)
    for mine, other in zip(cache.states, alone.states, strict=True):
      np.testing.assert_allclose(mine.memory[row], other.memory[0], atol=1e-5)
      np.testing.assert_allclose(mine.recent[row], other.recent[0], atol=1e-5)


@pytest.mark.parametrize(
  'sizes', [{'data': 2, 'fsdp': 2, 'tensor': 2}, {'data': 4, 'tensor': 2}], ids=str
)
def test_on_eight_devices_a_layer_and_its_gradients_are_the_same(single, sizes):
  config = hybrid(unroll=True)
  params = transformer.init(config, single, jax.random.key(0))

  def run(layout):
    def loss(params, x):
      layer = transformer.bind(config, layout, params).delta_blocks[0].delta_net
      out, _ = layer(x, start=None, cache=None, layer=None, count=None)
      return jnp.sum(jnp.sin(out)), out

    placed = jax.tree.map(lambda x: x.sharding, transformer.abstract(config, layout))
    program = jax.jit(jax.value_and_grad(loss, argnums=(0, 1), has_aux=True))
    return program(jax.device_put(params, placed), x)

  with jax.enable_x64(True):
    x = jnp.asarray(np.random.RandomState(0).standard_normal((8, 70, 64)))
    (_, want), slopes = run(single)
    (_, got), others = run(mesh_layout(**sizes))
  np.testing.assert_allclose(got, want, atol=1e-12)
  for mine, theirs in zip(jax.tree.leaves(slopes), jax.tree.leaves(others), strict=True):
    np.testing.assert_allclose(theirs, mine, rtol=2e-7, atol=1e-9)  # those of weights are float32


def test_columns_cut_over_devices_are_refused():
  with pytest.raises(ValueError, match='keep a state'):
    transformer.abstract(hybrid(), mesh_layout(context=2))


@pytest.mark.parametrize(
  'overrides, words',
  [({'num_layers': 5}, 'no multiple of the period'), ({'rotary_share': 0.2}, 'pair')],
)
def test_impossible_hybrids_are_refused(overrides, words):
  with pytest.raises(ValueError, match=words):
    hybrid(**overrides)


def test_a_state_does_not_grow():
  config = presets.qwen3p5_0p8b()
  short, long = (flops.cache_read(config, 1, tokens) for tokens in (1, 2))
  assert flops.state_bytes(config) == 18 * (4 * 16 * 128 * 128 + 4 * 3 * 6144)
  assert long - 2 * short == flops.key_bytes(config)
