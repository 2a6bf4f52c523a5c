"""Published folders as int8, tensor by tensor, and the pass that has one layer in memory at a time."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from opd_jax.models import int8, transformer
from opd_jax.sharding import mesh_layout
from opd_jax.storage import huggingface, layerwise, load, orbax_folder

MESHES = [{}, {'fsdp': 4, 'tensor': 2}]


def folder_of(tmp_path, config, form=huggingface):
  layout = mesh_layout()
  params = transformer.init(config, layout, jax.random.key(0))
  if form is huggingface:
    huggingface.save(tmp_path / 'model', config, layout, params)
  else:
    orbax_folder.save(tmp_path / 'model', config, params)
  return str(tmp_path / 'model')


@pytest.mark.parametrize('mesh', MESHES, ids=str)
def test_a_folder_becomes_int8_as_the_whole_model_would(family, tmp_path, mesh):
  source, layout = folder_of(tmp_path, family()), mesh_layout(**mesh)
  whole, streamed = load.model(source, layout), load.model(source, layout, int8=True)
  assert streamed.config.int8 and not whole.config.int8
  leaves = transformer.abstract(streamed.config, layout)
  jax.tree.map(
    np.testing.assert_array_equal, streamed.params, int8.converted(dict(whole.params), leaves)
  )
  lies = jax.tree.map(
    lambda x, leaf: x.sharding.is_equivalent_to(leaf.sharding, x.ndim), streamed.params, leaves
  )
  assert all(jax.tree.leaves(lies))


def test_a_folder_of_ours_becomes_the_same(family, tmp_path):
  published = load.model(folder_of(tmp_path / 'a', family()), mesh_layout(), int8=True)
  ours = load.model(folder_of(tmp_path / 'b', family(), orbax_folder), mesh_layout(), int8=True)
  jax.tree.map(np.testing.assert_array_equal, published.params, ours.params)


def test_no_matrix_is_there_in_two_forms_at_once(family, tmp_path, monkeypatch):
  """What is asked for as wide is one published tensor, never a stack of layers."""
  asked, quantiser = [], int8.quantiser
  monkeypatch.setattr(
    int8, 'quantiser', lambda leaf, scale: asked.append(leaf) or quantiser(leaf, scale)
  )
  config = family()
  load.model(folder_of(tmp_path, config), mesh_layout(), int8=True)
  largest = max(config.width * config.num_heads * config.head_dim, config.width * config.mlp_width)
  assert asked and max(leaf.size for leaf in asked) <= largest


@pytest.mark.parametrize('mesh', MESHES, ids=str)
def test_layer_by_layer_is_the_whole_model(family, tmp_path, mesh):
  config, layout = family(), mesh_layout(**mesh)
  source = folder_of(tmp_path, config)
  tokens = np.random.RandomState(0).randint(0, config.vocab_size, (8, 12)).astype(np.int32)
  start = np.array([0, 3, 7, 0, 1, 2, 11, 5], np.int32)
  whole = load.model(source, layout)
  want = layerwise.states(whole.params, tokens, start, config=whole.config, layout=layout)
  got = layerwise.hidden_of(source, layout, jnp.asarray(tokens), jnp.asarray(start))
  seen = np.arange(12) >= start[:, None]
  np.testing.assert_allclose(np.asarray(got)[seen], np.asarray(want)[seen], rtol=0, atol=2e-5)
