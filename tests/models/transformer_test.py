"""What a decoder must obey, for every family: the cache, left padding, layouts, compilation."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from opd_jax.models import cache as caches
from opd_jax.models import presets, transformer
from opd_jax.models.config import SAME_ROUNDING
from opd_jax.sharding import mesh_layout
from opd_jax.storage import parameter_names

START = np.array([0, 3, 5], np.int32)


@functools.partial(jax.jit, static_argnames=('config', 'layout'))
def logits(params, tokens, start=None, *, config, layout):
  model = transformer.bind(config, layout, params)
  hidden = model(tokens, start=start)
  return transformer.logits_of(hidden, model.head())


@functools.partial(jax.jit, static_argnames=('config', 'layout'))
def step(params, tokens, cache, *, config, layout):
  model = transformer.bind(config, layout, params)
  hidden, cache = model.extend(tokens, cache)
  return transformer.logits_of(hidden, model.head()), cache


def model_hidden(config, layout, params, tokens):
  return transformer.bind(config, layout, params)(tokens)


def real(values, start=START):
  """The entries of the columns that are not padding."""
  return np.concatenate([np.asarray(row)[first:] for row, first in zip(values, start, strict=True)])


def test_prefill_and_decode_equal_the_full_forward_at_every_position(
  family, single, tokens, params_of
):
  config = family()
  params = params_of(config)
  whole = logits(params, tokens, START, config=config, layout=single)
  cache = caches.empty(config, single, length=16, start=jnp.asarray(START))
  pieces = []
  for columns in (tokens[:, :6], *np.split(tokens[:, 6:], 6, axis=1)):
    piece, cache = step(params, columns, cache, config=config, layout=single)
    pieces.append(piece)
  np.testing.assert_allclose(real(np.concatenate(pieces, axis=1)), real(whole), atol=1e-5)
  assert cache.end.tolist() == [12, 12, 12]


def test_layers_apart_compute_what_stacked_ones_do(family, single, tokens, params_of):
  config = family()
  apart, params = transformer.unrolled(config, single, params_of(config))
  stacked = logits(params_of(config), tokens, START, config=config, layout=single)
  np.testing.assert_allclose(
    logits(params, tokens, START, config=apart, layout=single), stacked, atol=1e-5
  )
  assert jax.tree.structure(params) == jax.tree.structure(transformer.abstract(apart, single))
  assert transformer.unrolled(apart, single, params)[1] is params


def test_what_is_decoded_with_is_stored_as_it_is_used(family, single, tokens, params_of):
  config = family(dtype='bfloat16')
  apart, params = transformer.unrolled(config, single, params_of(config))
  assert (
    params['embed']['table'].dtype == 'bfloat16'
    and params_of(config)['embed']['table'].dtype == 'float32'
  )

  def run(params, config):
    forward = functools.partial(logits, tokens=tokens, start=START, config=config, layout=single)
    return jax.jit(forward, compiler_options=SAME_ROUNDING)(params)

  got, want = run(params, apart), run(params_of(config), config)
  np.testing.assert_array_equal(got[:, 5:], want[:, 5:])


def test_a_prefill_that_fills_its_cache_is_a_plain_forward(single, tokens, params_of):
  config = presets.tiny()
  cache = caches.empty(config, single, length=12, start=jnp.asarray(START))
  got, _ = step(params_of(config), tokens, cache, config=config, layout=single)
  want = logits(params_of(config), tokens, START, config=config, layout=single)
  np.testing.assert_allclose(real(got), real(want), atol=1e-5)


def test_rows_of_unlike_length_decode_side_by_side(single, tokens, params_of):
  """Each row writes at its own end: a slot may be refilled while its neighbours go on."""
  config = presets.tiny()
  params = params_of(config)
  run = functools.partial(step, params, config=config, layout=single)
  _, cache = run(
    tokens[:, :8], caches.empty(config, single, length=16, start=jnp.zeros(3, jnp.int32))
  )
  cache = cache._replace(
    end=jnp.array([8, 4, 6], jnp.int32)
  )  # as if rows 1 and 2 had ended earlier
  mixed, _ = run(tokens[:, 8:9], cache)
  for row, length in enumerate((8, 4, 6)):
    alone = np.concatenate([tokens[row : row + 1, :length], tokens[row : row + 1, 8:9]], axis=1)
    want = logits(params, alone, config=config, layout=single)[0, -1]
    np.testing.assert_allclose(mixed[row, 0], want, atol=1e-5)


def test_left_padding_is_exact_and_its_content_inert(family, single, tokens, params_of):
  config = family()
  params = params_of(config)
  run = functools.partial(logits, params, config=config, layout=single)
  padded = run(tokens, START)
  np.testing.assert_allclose(padded[2, 5:], run(tokens[2:, 5:])[0], atol=1e-5)
  other = np.where(np.arange(12) < START[:, None], 7, tokens)
  np.testing.assert_array_equal(real(padded), real(run(other, START)))
  assert np.isfinite(padded).all()


def test_the_future_does_not_leak(family, single, tokens, params_of):
  config = family()
  params = params_of(config)
  changed = tokens.copy()
  changed[:, 8:] = 1
  run = functools.partial(logits, params, config=config, layout=single)
  np.testing.assert_array_equal(run(tokens)[:, :8], run(changed)[:, :8])


LAYOUTS = {'fsdp': {'fsdp': 8}, 'tensor': {'tensor': 8}, 'fsdp_tensor': {'fsdp': 4, 'tensor': 2}}


def placed(config, layout, params):
  shardings = jax.tree.map(lambda leaf: leaf.sharding, transformer.abstract(config, layout))
  return jax.device_put(params, shardings)


@pytest.mark.parametrize('sizes', LAYOUTS.values(), ids=LAYOUTS)
def test_eight_devices_compute_what_one_does(family, sizes, single, params_of):
  """The same parameters, moved by one device_put."""
  config, layout = family(num_heads=8, num_kv_heads=8), mesh_layout(**sizes)
  params, tokens = (
    params_of(config),
    np.random.RandomState(0).randint(0, 320, (8, 12)).astype(np.int32),
  )
  want = logits(params, tokens, config=config, layout=single)
  batch = jax.device_put(tokens, layout.sharding('batch', 'length'))
  got = logits(placed(config, layout, params), batch, config=config, layout=layout)
  assert len(got.sharding.device_set) == 8
  np.testing.assert_allclose(got, want, atol=1e-5)


def test_fewer_key_value_heads_than_devices_are_copied(single, tokens, params_of):
  config, layout = (
    presets.tiny(num_heads=8, num_kv_heads=2),
    mesh_layout(tensor=8, replicate=('kv_heads',)),
  )
  want = logits(params_of(config), tokens, START, config=config, layout=single)
  got = logits(
    placed(config, layout, params_of(config)), tokens, START, config=config, layout=layout
  )
  np.testing.assert_allclose(got, want, atol=1e-5)


def test_parameters_are_born_in_their_shards_with_the_same_numbers(family, params_of):
  config, layout = family(), mesh_layout(fsdp=2, tensor=2)
  born = transformer.init(config, layout, jax.random.key(0))
  wanted = transformer.abstract(config, layout)
  assert jax.tree.all(
    jax.tree.map(lambda leaf, other: leaf.sharding == other.sharding, born, wanted)
  )
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), born, params_of(config))


def test_the_cache_works_under_a_layout(family, single, tokens, params_of):
  config, layout = family(), mesh_layout(fsdp=2, tensor=2)
  tokens, start = np.concatenate([tokens, tokens[:1]]), np.array([0, 3, 5, 2], np.int32)
  params = params_of(config)
  want = logits(params, tokens, start, config=config, layout=single)
  params = placed(config, layout, params)
  cache = caches.empty(config, layout, length=16, start=jnp.asarray(start))
  first, cache = step(params, tokens[:, :8], cache, config=config, layout=layout)
  second, cache = step(params, tokens[:, 8:], cache, config=config, layout=layout)
  np.testing.assert_allclose(
    real(np.concatenate([first, second], 1), start), real(want, start), atol=1e-5
  )
  assert cache.keys[0].sharding.shard_shape(cache.keys[0].shape) == (2, 1, 16, 16)


@pytest.mark.parametrize('remat', ['dots', 'full', 'offload'])
def test_remat_changes_memory_not_gradients(family, remat, single, tokens, params_of):
  def loss(params, config):
    return jnp.square(logits(params, tokens, START, config=config, layout=single)).mean()

  config, thrifty = family(), family(remat=remat)
  params = params_of(config)
  plain, saved = (jax.grad(loss)(params, c) for c in (config, thrifty))
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), plain, saved)


def test_remat_trades_memory_in_the_order_of_its_names(family, single):
  """Bytes that the forward pass leaves for the backward pass, read off the program."""

  def residuals(remat):
    config = family(remat=remat, num_layers=8)
    params, tokens = transformer.abstract(config, single), jax.ShapeDtypeStruct((8, 128), jnp.int32)

    def forward(params, tokens):
      return jax.vjp(lambda params: model_hidden(config, single, params, tokens), params)[1]

    leaves = jax.tree.leaves(jax.eval_shape(forward, params, tokens))
    return sum(leaf.size * leaf.dtype.itemsize for leaf in leaves)

  none, dots, full = map(residuals, ('none', 'dots', 'full'))
  assert none > 1.2 * dots > 1.2 * 1.2 * full


def test_what_is_offloaded_lies_in_the_memory_of_the_host(single):
  """The inputs of all layers, and no other activation of a layer."""
  config = presets.tiny(remat='offload', num_layers=8)
  params, tokens = transformer.abstract(config, single), jax.ShapeDtypeStruct((4, 128), jnp.int32)
  loss = lambda params, tokens: model_hidden(config, single, params, tokens).sum()
  program = str(jax.make_jaxpr(jax.grad(loss))(params, tokens))
  assert 'f32<host>[8,4,128,64]' in program and 'f32[8,4,128,64]' not in program


def test_parameters_are_a_plain_tree_of_the_asked_type(family, single, params_of):
  config = family(param_dtype='bfloat16')
  params = params_of(config)
  dtypes = {
    path.split('/')[-1]: leaf.dtype.name for path, leaf in parameter_names.flat(params).items()
  }
  assert dtypes == dict.fromkeys(dtypes, 'bfloat16') | (
    {'router': 'float32'} if config.experts else {}
  ) | ({'decay_log': 'float32', 'decay_bias': 'float32', 'norm': 'float32'} if config.delta else {})
  assert type(params) is dict and all(
    isinstance(leaf, jax.Array) for leaf in jax.tree.leaves(params)
  )


def test_positions_begin_at_the_first_token_of_each_row():
  columns = jnp.broadcast_to(jnp.arange(6), (2, 6))
  positions = transformer.positions_of(columns, jnp.array([0, 3]))
  assert positions.tolist() == [[0, 1, 2, 3, 4, 5], [0, 0, 0, 0, 1, 2]]
  assert transformer.positions_of(columns, None) is columns


def test_bfloat16_stays_near_float32(family, single, tokens, params_of):
  config = family()
  params = params_of(config)
  exact = logits(params, tokens, config=config, layout=single)
  rough = logits(params, tokens, config=family(dtype='bfloat16'), layout=single)
  assert rough.dtype == jnp.float32  # the head accumulates in float32
  assert 0 < np.abs(rough - exact).mean() < 0.05 * np.abs(exact).std()


def test_abstract_touches_no_memory():
  leaves = jax.tree.leaves(transformer.abstract(presets.qwen3_32b(), mesh_layout(fsdp=8)))
  assert sum(leaf.size for leaf in leaves) > 3e10
  assert all(isinstance(leaf, jax.ShapeDtypeStruct) for leaf in leaves)


def test_depth_adds_nothing_to_the_program(single, tokens):
  def size(layers):
    config = presets.tiny(num_layers=layers)
    return (
      logits.lower(transformer.abstract(config, single), tokens, config=config, layout=single)
      .as_text()
      .count('\n')
    )

  assert size(64) == size(transformer.SHALLOW + 1)  # so few are written out


@pytest.mark.parametrize('sizes', [{}, {'fsdp': 2, 'tensor': 2}], ids=['single', 'fsdp_tensor'])
def test_one_compile_per_program(sizes):
  """The cache goes round and round through one program."""
  config, layout = presets.tiny(norm_epsilon=3e-6), mesh_layout(**sizes)
  params = transformer.init(config, layout, jax.random.key(0))
  cache = caches.empty(config, layout, length=16, start=jnp.zeros(4, jnp.int32))
  before = step._cache_size()
  for _ in range(5):
    _, cache = step(params, np.zeros((4, 1), np.int32), cache, config=config, layout=layout)
  assert step._cache_size() == before + 1


def test_a_profile_reads_like_the_source(single, tokens):
  config = presets.tiny()
  text = (
    logits.lower(transformer.abstract(config, single), tokens, config=config, layout=single)
    .compile()
    .as_text()
  )
  assert text is not None
  for scope in ('embed', 'layers', 'attention', 'attend', 'mlp', 'final_norm', 'head'):
    assert f'/{scope}/' in text


def test_sequences_beyond_the_position_table_are_refused(single):
  config = presets.tiny(max_positions=8)
  params = transformer.abstract(config, single)
  with pytest.raises(ValueError, match=r'12 positions .*max_positions=8'):
    logits.lower(params, np.zeros((1, 12), np.int32), config=config, layout=single)
  with pytest.raises(ValueError, match='cache: a sequence of 9'):
    caches.empty(config, single, length=9, start=jnp.zeros(1, jnp.int32))
