"""Floor 2. What a published model makes of some rows, with one layer, or one period of them, in memory at a time."""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from opd_jax.models import transformer
from opd_jax.models.config import SAME_ROUNDING, ModelConfig
from opd_jax.models.layers import rotary_table
from opd_jax.sharding import Layout
from opd_jax.storage import huggingface, parameter_names, placing
from opd_jax.storage.load import folder_of
from opd_jax.types import AnyArray, Params

SETTINGS = ('config', 'layout')
compiled = functools.partial(jax.jit, static_argnames=SETTINGS, compiler_options=SAME_ROUNDING)


def hidden_of(
  source: str,
  layout: Layout,
  tokens: Int[AnyArray, 'B T'],
  start: Int[AnyArray, ' B'],
  **types: Any,
) -> Float[Array, 'B T D']:
  """Hidden states of whole rows after the last norm, as `transformer.Transformer` has them.

  Args:
    source: a published folder or hub id.
    tokens, start: rows, and their columns of left padding.
    types: param_dtype and dtype; as it is stored.
  """
  found, pieces, tensors = huggingface.check_files(folder_of(source), layout)
  config = dataclasses.replace(found, **types)
  leaves = parameter_names.flat(transformer.abstract(config, layout))
  rest = huggingface.placed([piece for piece in pieces if not piece.at], tensors, leaves)
  stacks = config.stacks()
  groups = len(stacks['blocks'])
  one = dataclasses.replace(config, num_layers=config.num_layers // groups, unroll=True)
  x = _embedded(rest, tokens, config=one, layout=layout)
  of_layer = {
    path: placing.slice_of(leaf, 1) for path, leaf in leaves.items() if path.split('/')[0] in stacks
  }
  for group in range(groups):
    blocks = {stack: {} for stack in stacks}
    for stack, layers in stacks.items():
      each = len(layers) // groups
      for at in range(each):
        layer = group * each + at
        own = [
          dataclasses.replace(piece, at=piece.at[1:])
          for piece in pieces
          if piece.path.startswith(f'{stack}/') and piece.at[0] == layer
        ]
        blocks[stack][at] = huggingface.placed(own, tensors, of_layer)[stack]
    x = _through(rest, blocks, x, start, config=one, layout=layout)
  return _normed(rest, blocks, x, config=one, layout=layout)


@compiled
def states(params, tokens, start, *, config, layout):
  """The same of a model that is in memory whole."""
  return transformer.bind(config, layout, params)(tokens, start=start)


def _bound(rest: Params, blocks: Params, config: ModelConfig, layout: Layout):
  return transformer.bind(config, layout, {**rest, **blocks})


@compiled
def _embedded(rest, tokens, *, config, layout):
  x = rest['embed']['table'][tokens].astype(config.dtype)
  return layout.constrain(x, 'batch', 'length', 'width')


@compiled
def _through(rest, blocks, x, start, *, config, layout):
  columns = jnp.broadcast_to(jnp.arange(x.shape[1]), x.shape[:2])
  table = rotary_table(transformer.positions_of(columns, start), config)
  for layer in _bound(rest, blocks, config, layout).layers():
    x, _ = layer(x, table, start=start, cache=None, layer=None)
    x = layout.constrain(x, 'batch', 'length', 'width')
  return x


@compiled
def _normed(rest, blocks, x, *, config, layout):
  return _bound(rest, blocks, config, layout).final_norm(x)
