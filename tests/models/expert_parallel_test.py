"""Experts on several devices: the same sums and gradients as on one, whatever the router chooses."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import FAMILIES

from opd_jax.models import expert_parallel, presets, transformer
from opd_jax.models.config import Experts
from opd_jax.models.experts import ExpertMLP, mixture
from opd_jax.models.lora import Lora
from opd_jax.sharding import mesh_layout

LAYOUTS = [
  {'experts': 8},
  {'fsdp': 2, 'experts': 2, 'tensor': 2},
]
EXPERTS = Experts(count=8, per_token=3, width=6, normalise=True)
NAMES = 'router', 'gate', 'up', 'down'


def arrays(x_of=lambda draw: draw(8, 5, 4)):
  rng = np.random.RandomState(0)
  draw = lambda *shape: jnp.asarray(rng.standard_normal(shape))
  return x_of(draw), draw(4, 8), draw(8, 4, 6), draw(8, 4, 6), draw(8, 6, 4)


def sharded(shape):
  """The layer's own function over a mesh, on given arrays."""
  layer = object.__new__(ExpertMLP)
  object.__setattr__(layer, 'experts', EXPERTS)
  object.__setattr__(layer, 'layout', mesh_layout(**shape))
  return lambda x, *weights: ExpertMLP._sharded(layer, x, *weights, adapters={})  # pyright: ignore[reportCallIssue]


def alone(x, *weights):
  return mixture(x.reshape(-1, 4), *weights, experts=EXPERTS).reshape(x.shape)


ONE_SIDED = lambda draw: jnp.abs(draw(8, 5, 4)) * jnp.array([5.0, 0.1, 0.1, 0.1])


@pytest.mark.parametrize('x_of', [lambda draw: draw(8, 5, 4), ONE_SIDED], ids=['any', 'one-sided'])
@pytest.mark.parametrize('shape', LAYOUTS, ids=str)
def test_outputs_and_gradients_are_those_of_one_device(shape, x_of, monkeypatch):
  """Also where all tokens want the experts of one device, and tokens come in several parts and blocks."""
  monkeypatch.setattr(expert_parallel, 'LANES', 4)
  monkeypatch.setattr(expert_parallel, 'GATHERED_BYTES', 300)
  with jax.enable_x64(True):
    given = arrays(x_of)
    pull = jnp.cos(jnp.arange(given[0].size)).reshape(given[0].shape)

    def both(function):
      loss = lambda *given: (pull * function(*given)).sum()
      return jax.jit(lambda *given: (function(*given), jax.grad(loss, argnums=range(5))(*given)))

    want, got = both(alone)(*given), both(sharded(shape))(*given)
    for one, other in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
      # The router decides in float32, whatever the rest is.
      np.testing.assert_allclose(one, other, rtol=0, atol=1e-6 * np.abs(other).max())


def test_a_model_is_that_of_one_device():
  """Every layer, its adapters, its scan and its recomputation."""
  config = FAMILIES['qwen3_moe'](remat='full', lora=Lora(rank=4))
  tokens = jnp.asarray(np.random.RandomState(0).randint(0, 320, (8, 12)))

  def run(layout):
    params = transformer.init(config, layout, jax.random.key(0))
    params = jax.tree.map(lambda x: x + 0.02 * jnp.cos(jnp.arange(x.size)).reshape(x.shape), params)
    loss = lambda params: (transformer.bind(config, layout, params)(tokens) ** 3).mean()
    return jax.device_get(jax.jit(jax.value_and_grad(loss))(params))

  want, got = run(mesh_layout()), run(mesh_layout(fsdp=2, experts=4))
  for one, other in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
    np.testing.assert_allclose(one, other, rtol=0, atol=1e-5 * max(np.abs(other).max(), 1e-2))


def test_experts_that_devices_cannot_share_are_refused():
  with pytest.raises(ValueError, match="has 6 along 'experts', which 4 devices"):
    experts = Experts(count=6, per_token=2, width=32, normalise=True)
    transformer.abstract(presets.tiny(experts=experts), mesh_layout(experts=4))


def test_a_dense_model_takes_the_devices_of_experts_as_more_of_fsdp():
  leaves = jax.tree.leaves(transformer.abstract(presets.tiny(), mesh_layout(fsdp=2, experts=4)))
  whole, here = (
    sum(size(x) for x in leaves) for size in (_size, functools.partial(_size, cut=True))
  )
  assert here < whole / 7


def _size(leaf, cut=False):
  return np.prod(leaf.sharding.shard_shape(leaf.shape) if cut else leaf.shape)
