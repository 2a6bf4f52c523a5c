"""Floor 1. Which parameters of a model with LoRA are frozen and which are trained; how both become one model again.

The trained tree holds the adapters and nothing else, the frozen one everything else. Joined they are the parameters of
the model, by reference: any number of adapters share one base. A model without LoRA trains everything and freezes {}.
"""

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, PRNGKeyArray

from opd_jax.models import int8, lora, transformer
from opd_jax.models.config import ModelConfig
from opd_jax.models.int8 import SCALE
from opd_jax.models.lora import ADAPTER
from opd_jax.sharding import Layout
from opd_jax.types import Params

Tree = Mapping[Any, Any]  # parameters, or a part of them; unrolled layers have numbers for names
NO_BASE: Params = {}


def plain(config: ModelConfig) -> ModelConfig:
  """The model without adapters."""
  return dataclasses.replace(config, lora=None, int8=False)


def with_lora(config: ModelConfig, settings: lora.Lora) -> ModelConfig:
  """The model with adapters, beside a base that is stored as they say."""
  return dataclasses.replace(config, lora=settings, int8=settings.int8)


def joined(base: Tree, trained: Tree) -> Tree:
  """Both trees as one; no array is copied."""
  if not base:
    return trained
  both = {key: joined(base[key], trained[key]) for key in base.keys() & trained.keys()}
  return {**base, **trained, **both}


def split(config: ModelConfig, params: Params) -> tuple[Params, Params]:
  """The frozen and the trained part of a tree of parameters: the inverse of `joined`."""
  return (NO_BASE, params) if config.lora is None else _split(params)


def _split(tree: Tree) -> tuple[dict, dict]:
  base, trained = {}, {}
  for key, node in tree.items():
    if str(key).endswith(ADAPTER):
      trained[key] = node
    elif isinstance(node, Mapping):
      parts = _split(node)
      for side, part in zip((base, trained), parts, strict=True):
        if part:
          side[key] = part
    else:
      base[key] = node
  return base, trained


def trained(config: ModelConfig, layout: Layout) -> Params:
  """Shapes, dtypes and shardings of what the optimiser moves."""
  return split(config, transformer.abstract(config, layout))[1]


def frozen(config: ModelConfig, layout: Layout) -> Params:
  """Shapes, dtypes and shardings of the base."""
  return split(config, transformer.abstract(config, layout))[0]


def begin(
  config: ModelConfig, layout: Layout, params: dict[str, Any], key: PRNGKeyArray
) -> tuple[Params, Params]:
  """Base and adapters of a model that computes what `params` compute: B is zero.

  Args:
    config: with LoRA; without it, everything is trained.
    params: of the model without adapters. Where the base is int8 their matrices are taken out one by one, so that
      both forms of all of them are never there at once.
    key: of the adapters.
  """
  if config.lora is None:
    return NO_BASE, params
  return int8.converted(params, frozen(config, layout)), _drawer(config, layout)(key)


@functools.lru_cache(maxsize=16)
def _drawer(config: ModelConfig, layout: Layout) -> Any:
  """The program that draws adapters, compiled once for all keys; nothing of the base is drawn in it."""

  def draw(key):
    model = transformer.Transformer(config, layout, rngs=nnx.Rngs(key))
    return split(config, nnx.to_pure_dict(nnx.split(model)[1]))[1]

  return jax.jit(draw, out_shardings=_shardings(trained(config, layout)))


def merged(config: ModelConfig, layout: Layout, params: Params, target: ModelConfig) -> Params:
  """The parameters of a model without adapters that computes the same: W + alpha / rank · A B.

  Args:
    config, params: with LoRA, base and adapters joined; without it, params come back as they are.
    target: the model without it; says how the result is stored.
  """
  return params if config.lora is None else _merger(config, layout, target)(params)


@functools.lru_cache(maxsize=16)
def _merger(config: ModelConfig, layout: Layout, target: ModelConfig) -> Any:
  target = dataclasses.replace(plain(target), unroll=config.unroll)
  leaves = transformer.abstract(target, layout)
  assert config.lora is not None
  factor = config.lora.factor

  def program(params):
    cast = lambda leaf, w: w.astype(leaf.dtype)
    return jax.tree.map(cast, leaves, _merged(params, factor))

  return jax.jit(program, out_shardings=_shardings(leaves))


def _merged(tree: Tree, factor: float) -> dict:
  whole = {}
  for key, node in tree.items():
    if str(key).endswith((ADAPTER, SCALE)):
      continue
    if isinstance(node, Mapping):
      whole[key] = _merged(node, factor)
      continue
    if (scale := tree.get(f'{key}{SCALE}')) is not None:
      node = node.astype(scale.dtype) * scale
    if (pair := tree.get(f'{key}{ADAPTER}')) is not None:
      node = node + factor * product(pair['A'], pair['B'], node.shape)
    whole[key] = node
  return whole


def product(a: Array, b: Array, shape: tuple[int, ...]) -> Array:
  """A B for every layer and expert, in the shape of the weight."""
  first = a.shape[: a.ndim + b.ndim - len(shape) - 2]
  inputs, outputs = (
    a.reshape(*first, -1, a.shape[-1]),
    b.reshape(*first, a.shape[-1], -1),
  )
  return jnp.matmul(inputs, outputs, precision='highest').reshape(shape)


def _shardings(tree: Any) -> Any:
  return jax.tree.map(lambda leaf: leaf.sharding, tree)
