"""Adapters beside frozen weights: against merged weights, a float64 reference, and each other's layouts."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from opd_jax.models import adapters, lora, presets, transformer
from opd_jax.models.lora import TARGETS, Lora
from opd_jax.sharding import mesh_layout
from opd_jax.storage import parameter_names
from opd_jax.types import Params

LORA = Lora(rank=4, alpha=12)
RNG = np.random.RandomState(0)


def moved(tree: Params) -> Params:
  """Adapters after some training: B is no longer zero."""
  wave = lambda x: x + 0.02 * jnp.sin(jnp.arange(x.size, dtype=x.dtype)).reshape(x.shape)
  return jax.tree.map(wave, tree)


def begun(config, settings=LORA, layout=None):
  """A model, the same with LoRA, and its two trees."""
  layout = layout or mesh_layout()
  params = transformer.init(config, layout, jax.random.key(0))
  student = adapters.with_lora(config, settings)
  base, trained = adapters.begin(student, layout, jax.tree.map(jnp.copy, params), jax.random.key(1))
  return params, student, base, trained


def logits(config, params, tokens, layout=None):
  layout = layout or mesh_layout()

  @jax.jit
  def program(params):
    model = transformer.bind(config, layout, params)
    return transformer.logits_of(model(jnp.asarray(tokens)), model.head())

  return np.asarray(program(params))


@pytest.mark.parametrize('unroll', [False, True])
@pytest.mark.parametrize('dtype', ['float32', 'bfloat16'])
def test_fresh_adapters_change_no_bit(family, tokens, unroll, dtype):
  config = family(unroll=unroll, dtype=dtype, param_dtype=dtype)
  params, student, base, trained = begun(config)
  got = logits(student, adapters.joined(base, trained), tokens)
  np.testing.assert_array_equal(got, logits(config, params, tokens))


@pytest.mark.parametrize('unroll', [False, True])
def test_adapters_compute_what_merged_weights_compute(family, tokens, unroll):
  config = family(unroll=unroll)
  params, student, base, trained = begun(config)
  whole = adapters.joined(base, moved(trained))
  merged = adapters.merged(student, mesh_layout(), whole, config)
  assert jax.tree.structure(merged) == jax.tree.structure(params)
  got, want = logits(student, whole, tokens), logits(config, merged, tokens)
  np.testing.assert_allclose(got, want, atol=1e-5 * np.abs(want).max())
  assert np.abs(want - logits(config, params, tokens)).max() > 0.1


def test_a_product_of_adapters_is_exact_in_float64():
  """(alpha / rank) (x A) B = x (W' - W), for two input axes and for experts."""
  with jax.enable_x64(True):
    x, a, b = RNG.randn(5, 6), RNG.randn(2, 3, 4), RNG.randn(4, 7)
    whole = adapters.product(jnp.asarray(a), jnp.asarray(b), (2, 3, 7))
    np.testing.assert_allclose(
      x @ np.asarray(whole).reshape(6, 7), x @ a.reshape(6, 4) @ b, atol=1e-12
    )
    a, b = RNG.randn(3, 6, 4), RNG.randn(3, 4, 7)
    whole = adapters.product(jnp.asarray(a), jnp.asarray(b), (3, 6, 7))
    np.testing.assert_allclose(whole, np.einsum('eir,ero->eio', a, b), atol=1e-12)


def test_gradients_of_a_layer_are_those_of_a_dense_float64_reference():
  """L = Σ g · (x W + c (x A) B): dA = c xᵀ g Bᵀ, dB = c (x A)ᵀ g, of stored factors of one output projection."""
  config = presets.tiny()
  _, student, base, trained = begun(config)
  whole, x, g = adapters.joined(base, moved(trained)), RNG.randn(2, 5, 128), RNG.randn(2, 5, 64)
  mlp = transformer.bind(student, mesh_layout(), whole)._block(1).mlp
  a, b = mlp.down_lora.A[...], mlp.down_lora.B[...]

  def loss(a, b):
    layer = transformer.bind(student, mesh_layout(), whole)._block(1).mlp
    layer.down_lora.A[...], layer.down_lora.B[...] = a, b
    single = jnp.asarray(x, jnp.float32)
    return jnp.sum(
      jnp.asarray(g, jnp.float32) * lora.adapted(layer, 'down', single, jnp.zeros_like(g))
    )

  got = jax.grad(loss, argnums=(0, 1))(a, b)
  flat, slope, factor = x.reshape(-1, 128), g.reshape(-1, 64), LORA.factor
  wide = [np.asarray(each, np.float64) for each in (a, b)]
  want = factor * flat.T @ slope @ wide[1].T, factor * (flat @ wide[0]).T @ slope
  for one, other in zip(got, want, strict=True):
    np.testing.assert_allclose(one, other, atol=1e-5 * np.abs(other).max())


@pytest.mark.parametrize('experts', [False, True])
def test_gradients_of_a_model_are_those_of_its_merged_weights(tokens, experts):
  """dB of the whole model is c Aᵀ dW, dA is c dW Bᵀ, with dW from the model whose weights are merged."""
  from conftest import FAMILIES

  config = FAMILIES['qwen3_moe' if experts else 'qwen3']()
  _, student, base, trained = begun(config)
  trained, layout = moved(trained), mesh_layout()
  way = jnp.asarray(RNG.randn(*tokens.shape, config.width), jnp.float32)

  def loss(config, params):
    return jnp.sum(way * transformer.bind(config, layout, params)(jnp.asarray(tokens)))

  got = jax.jit(jax.grad(lambda t: loss(student, adapters.joined(base, t))))(trained)
  merged = adapters.merged(student, layout, adapters.joined(base, trained), config)
  dense = parameter_names.flat(jax.jit(jax.grad(lambda p: loss(config, p)))(merged))
  got, factors = parameter_names.flat(got), parameter_names.flat(trained)
  for path in sorted({path.rpartition('_lora')[0] for path in got}):
    a, b = (np.asarray(factors[f'{path}_lora/{side}'], np.float64) for side in 'AB')
    first = a.shape[: a.ndim + b.ndim - dense[path].ndim - 2]
    flat_a, flat_b = a.reshape(*first, -1, 4), b.reshape(*first, 4, -1)
    slope = np.asarray(dense[path], np.float64).reshape(*first, flat_a.shape[-2], -1)
    want = {'A': slope @ np.moveaxis(flat_b, -1, -2), 'B': np.moveaxis(flat_a, -1, -2) @ slope}
    for side, value in want.items():
      one = np.asarray(got[f'{path}_lora/{side}']).reshape(value.shape)
      np.testing.assert_allclose(
        one, LORA.factor * value, atol=3e-5 * np.abs(LORA.factor * value).max()
      )


def test_only_adapters_are_trained_and_the_rest_is_shared():
  _, student, base, trained = begun(presets.tiny(), Lora(rank=2, targets=('q_proj', 'down_proj')))
  paths = parameter_names.flat(trained)
  assert {path.split('/')[-2] for path in paths} == {'query_lora', 'down_lora'}
  assert {x.dtype.name for x in paths.values()} == {'float32'}
  whole = adapters.joined(base, trained)
  assert whole['blocks']['attention']['query'] is base['blocks']['attention']['query']
  again = adapters.split(student, whole)
  assert jax.tree.all(jax.tree.map(lambda x, y: x is y, again, (base, trained)))


def test_without_lora_nothing_is_frozen():
  config = presets.tiny()
  params = transformer.init(config, mesh_layout(), jax.random.key(0))
  base, trained = adapters.begin(config, mesh_layout(), params, jax.random.key(1))
  assert base == {} and trained is params and adapters.joined(base, trained) is params


def test_decoding_reads_adapters_beside_unrolled_weights(family, tokens):
  config = family()
  _, student, base, trained = begun(config)
  whole = adapters.joined(base, moved(trained))
  target, params = transformer.unrolled(student, mesh_layout(), whole)
  got, want = logits(target, params, tokens), logits(student, whole, tokens)
  np.testing.assert_allclose(got, want, atol=1e-5 * np.abs(want).max())


@pytest.mark.parametrize('mesh', [{'fsdp': 8}, {'fsdp': 4, 'tensor': 2}], ids=str)
@pytest.mark.parametrize('int8', [False, True])
def test_eight_devices_compute_what_one_computes(family, mesh, int8):
  tokens = np.random.RandomState(0).randint(0, 320, (8, 12)).astype(np.int32)
  config, settings, layout = family(), dataclasses.replace(LORA, int8=int8), mesh_layout(**mesh)
  _, student, *alone = begun(config, settings)
  _, _, *spread = begun(config, settings, layout)
  jax.tree.map(np.testing.assert_array_equal, alone, spread)
  lies = jax.tree.map(lambda leaf: leaf.sharding, transformer.abstract(student, layout))
  jax.tree.map(
    lambda x, at: x.sharding.is_equivalent_to(at, x.ndim) or 1 / 0, adapters.joined(*spread), lies
  )
  want = logits(student, adapters.joined(alone[0], moved(alone[1])), tokens)
  got = logits(student, adapters.joined(spread[0], moved(spread[1])), tokens, layout)
  np.testing.assert_allclose(got, want, atol=1e-5 * np.abs(want).max())


def test_int8_is_off_by_at_most_half_a_step(family):
  """|w - q s| ≤ s / 2 with s = max |w| / 127 of an output channel, so |x W - x Q s| ≤ |x|₁ s / 2."""
  config = family()
  params, student, base, _ = begun(config, dataclasses.replace(LORA, int8=True))
  back = parameter_names.flat(adapters.merged(student, mesh_layout(), base, config))
  stored, before = parameter_names.flat(base), parameter_names.flat(params)
  assert back.keys() == before.keys()
  for path, w in before.items():
    if f'{path}_scale' not in stored:
      np.testing.assert_array_equal(back[path], w)
      continue
    assert stored[path].dtype == np.int8
    scale = np.asarray(stored[f'{path}_scale'])
    over = tuple(axis for axis, size in enumerate(scale.shape) if size == 1)
    assert scale.shape[-1] > 1 or path.endswith('output')
    largest = np.abs(np.asarray(w)).max(axis=over, keepdims=True)
    np.testing.assert_allclose(scale, largest / 127, rtol=1e-6)
    error = np.abs(np.asarray(back[path], np.float64) - np.asarray(w, np.float64))
    assert (error <= scale / 2 * (1 + 1e-4)).all() and error.max() > 0


def test_an_int8_model_is_the_model_of_its_rounded_weights(family, tokens):
  config = family()
  _, student, base, trained = begun(config, dataclasses.replace(LORA, int8=True))
  whole = adapters.joined(base, moved(trained))
  want = logits(config, adapters.merged(student, mesh_layout(), whole, config), tokens)
  np.testing.assert_allclose(logits(student, whole, tokens), want, atol=1e-5 * np.abs(want).max())
  stored = parameter_names.flat(base)
  matrices = [path for path in stored if f'{path}_scale' in stored]
  maps = sum(len(config.sides(stack)) for stack in config.stacks())
  assert len(matrices) == maps and all(stored[path].dtype == np.int8 for path in matrices)


@pytest.mark.parametrize(
  'settings, message',
  [
    ({'rank': 0}, 'rank must be a whole number above 0'),
    ({'alpha': 0.0}, 'alpha must be above 0'),
    ({'targets': ('q_proj', 'lm_head')}, r"unknown targets \['lm_head'\]; choose among q_proj"),
    ({'targets': ()}, 'no targets'),
  ],
)
def test_settings_that_mean_nothing_are_refused(settings, message):
  with pytest.raises(ValueError, match=message):
    Lora(**settings)


def test_a_rank_that_a_map_does_not_have_is_refused():
  with pytest.raises(
    ValueError, match='rank 33 is more than k_proj of this model has: it is 64 x 32'
  ):
    presets.tiny(lora=Lora(rank=33))
  assert presets.tiny(lora=Lora(rank=33, targets=('q_proj',))).lora
  assert {TARGETS[target] for target in TARGETS} >= set(presets.tiny().sides())
  with pytest.raises(
    ValueError, match='this model has no in_proj_z, out_proj; its linear maps are q_'
  ):
    presets.tiny(lora=Lora(targets=('q_proj', 'in_proj_z', 'out_proj')))
