"""Floor 2. What a published model makes of some rows, with one layer of it in memory at a time."""

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
  one = dataclasses.replace(config, num_layers=1, unroll=True)
  x = _embedded(rest, tokens, config=one, layout=layout)
  of_layer = {
    path: placing.slice_of(leaf, 1) for path, leaf in leaves.items() if path.startswith('blocks/')
  }
  for layer in range(config.num_layers):
    own = [
      dataclasses.replace(piece, at=piece.at[1:]) for piece in pieces if piece.at[:1] == (layer,)
    ]
    block = huggingface.placed(own, tensors, of_layer)['blocks']
    x = _through(rest, block, x, start, config=one, layout=layout)
  return _normed(rest, block, x, config=one, layout=layout)


@compiled
def states(params, tokens, start, *, config, layout):
  """The same of a model that is in memory whole."""
  return transformer.bind(config, layout, params)(tokens, start=start)


def _bound(rest: Params, block: Params, config: ModelConfig, layout: Layout):
  return transformer.bind(config, layout, {**rest, 'blocks': {0: block}})


@compiled
def _embedded(rest, tokens, *, config, layout):
  x = rest['embed']['table'][tokens].astype(config.dtype)
  return layout.constrain(x, 'batch', 'length', 'width')


@compiled
def _through(rest, block, x, start, *, config, layout):
  columns = jnp.broadcast_to(jnp.arange(x.shape[1]), x.shape[:2])
  table = rotary_table(transformer.positions_of(columns, start), config)
  layer = _bound(rest, block, config, layout).blocks[0]
  return layout.constrain(
    layer(x, table, start=start, cache=None, layer=None)[0], 'batch', 'length', 'width'
  )


@compiled
def _normed(rest, block, x, *, config, layout):
  return _bound(rest, block, config, layout).final_norm(x)
