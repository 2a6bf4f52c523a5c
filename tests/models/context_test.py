"""Columns of a row on several devices: the same losses, gradients and scores as on one."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import FAMILIES

from opd_jax.inference import scorer
from opd_jax.losses import vocabulary
from opd_jax.losses.terms import PolicyGradient
from opd_jax.models import cache, context, presets, transformer
from opd_jax.models.attention import attend
from opd_jax.sharding import mesh_layout
from opd_jax.types import ScoreRequest

LAYOUTS = [{'data': 2, 'context': 4}, {'fsdp': 2, 'context': 2, 'tensor': 2}]


@pytest.mark.parametrize('pieces', [1, 2, 3, 4, 8])
def test_devices_have_the_same_work_and_every_column_once(pieces):
  columns = context.order(pieces, 12 * pieces)
  assert sorted(columns.ravel().tolist()) == list(range(12 * pieces))
  work = (columns + 1).sum(axis=1)  # keys that the queries of a device read
  assert len(set(work.tolist())) == 1


@pytest.mark.parametrize('shape', [{'context': 8}, {'data': 2, 'context': 2, 'tensor': 2}], ids=str)
def test_attention_and_its_gradient_are_those_of_one_device(shape):
  """With left padding, and fewer key-value heads than query heads."""
  with jax.enable_x64(True):
    rng = np.random.RandomState(0)
    query, key, value = (jnp.asarray(rng.standard_normal((2, 16, n, 8))) for n in (4, 2, 2))
    start = jnp.array([0, 5])
    seen = (jnp.arange(16) >= start[:, None])[..., None, None]
    pull = jnp.asarray(rng.standard_normal(query.shape))

    def run(layout):
      def loss(*given):
        mixed = jnp.where(seen, attend(*given, start=start, layout=layout), 0.0)
        return (pull * mixed).sum(), mixed

      return jax.jit(jax.value_and_grad(loss, argnums=(0, 1, 2), has_aux=True))(query, key, value)

    want, got = run(mesh_layout()), run(mesh_layout(**shape))
    for one, other in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
      np.testing.assert_allclose(one, other, rtol=0, atol=1e-6)


def world(rows: int = 2):
  rng = np.random.RandomState(0)
  draw = lambda *shape: jnp.asarray(rng.randint(1, 320, shape), jnp.int32)
  return draw(rows, 6), jnp.array([6, 3])[:rows], draw(rows, 11), draw(rows, 11, 3)


@pytest.mark.parametrize('shape', LAYOUTS, ids=str)
def test_loss_and_gradients_of_a_model_are_those_of_one_device(shape):
  """Its rows of 17 columns divide by nothing, so they are padded."""
  config = FAMILIES['qwen3'](remat='full')
  prompt, length, response, _ = world()
  coefficient = jnp.asarray(np.random.RandomState(1).standard_normal(response.shape), jnp.float32)

  @functools.partial(jax.jit, static_argnames=('layout',))
  def run(params, layout):
    def loss(params):
      model = transformer.bind(config, layout, params)
      states, _ = scorer.states_of(model, prompt, length, response)
      terms = (PolicyGradient()(coefficient),)
      return vocabulary.weighted_sum(states, model.head(), response, {}, terms, layout=layout)[0]

    return jax.value_and_grad(loss)(params)

  run_on = lambda layout: jax.device_get(
    run(transformer.init(config, layout, jax.random.key(0)), layout)
  )
  want, got = run_on(mesh_layout()), run_on(mesh_layout(**shape))
  for one, other in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
    np.testing.assert_allclose(one, other, rtol=0, atol=1e-5 * max(np.abs(other).max(), 1e-2))


def test_scores_are_those_of_one_device():
  config = presets.tiny()
  request = ScoreRequest(entropy=True, top_k=3, hidden=True, layers=(0,))

  def run(layout):
    params = transformer.init(config, layout, jax.random.key(0))
    return jax.device_get(
      scorer.score(params, *world(), config=config, layout=layout, request=request)
    )

  want, got = run(mesh_layout()), run(mesh_layout(fsdp=2, context=4))
  np.testing.assert_array_equal(got.top_k.ids, want.top_k.ids)
  for one, other in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
    np.testing.assert_allclose(one, other, rtol=0, atol=1e-5 * max(np.abs(other).max(), 1.0))


def test_what_a_layer_keeps_is_cut_by_columns():
  """One row on eight devices: no device holds the whole of what the backward pass reads."""
  config, layout = presets.tiny(remat='full', num_layers=8), mesh_layout(context=8)
  tokens = jax.ShapeDtypeStruct((1, 1024), np.int32)
  loss = lambda params, tokens: transformer.bind(config, layout, params)(tokens).sum()
  program = jax.jit(jax.grad(loss)).lower(transformer.abstract(config, layout), tokens).compile()
  text = program.as_text() or ''
  assert 'f32[8,1,128,64]' in text and 'f32[8,1,1024,64]' not in text


def test_what_cannot_be_cut_is_refused():
  layout, config = mesh_layout(context=8), presets.tiny()
  with pytest.raises(ValueError, match=r'17 columns cannot be shared evenly by 8 devices'):
    transformer.bind(config, layout, transformer.init(config, layout, jax.random.key(0)))(
      jnp.zeros((1, 17), jnp.int32)
    )
  with pytest.raises(ValueError, match=r'cannot be written .*Bind experiment.Experiment.sampling_'):
    cache.empty(config, layout, length=8, start=jnp.zeros(1, jnp.int32))
