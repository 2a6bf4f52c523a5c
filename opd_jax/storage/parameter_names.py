"""Floor 2. Which published tensor is which parameter: a table that covers every tensor and every parameter."""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from opd_jax.models import transformer
from opd_jax.models.config import ModelConfig
from opd_jax.sharding import Layout
from opd_jax.types import Params

# Our path -> (published name, how many leading axes of ours are the inputs of a linear map). Published
# linear maps are [out, in], ours [in…, out…]; 0 marks tensors that are stored as they are.
TABLE: Mapping[str, tuple[str, int]] = {
  'embed/table': ('model.embed_tokens.weight', 0),
  'unembed/table': ('lm_head.weight', 0),
  'final_norm/scale': ('model.norm.weight', 0),
  'blocks/attention_norm/scale': ('model.layers.{layer}.input_layernorm.weight', 0),
  'blocks/attention/query': ('model.layers.{layer}.self_attn.q_proj.weight', 1),
  'blocks/attention/key': ('model.layers.{layer}.self_attn.k_proj.weight', 1),
  'blocks/attention/value': ('model.layers.{layer}.self_attn.v_proj.weight', 1),
  'blocks/attention/output': ('model.layers.{layer}.self_attn.o_proj.weight', 2),
  'blocks/attention/query_bias': ('model.layers.{layer}.self_attn.q_proj.bias', 0),
  'blocks/attention/key_bias': ('model.layers.{layer}.self_attn.k_proj.bias', 0),
  'blocks/attention/value_bias': ('model.layers.{layer}.self_attn.v_proj.bias', 0),
  'blocks/attention/query_norm/scale': ('model.layers.{layer}.self_attn.q_norm.weight', 0),
  'blocks/attention/key_norm/scale': ('model.layers.{layer}.self_attn.k_norm.weight', 0),
  'blocks/mlp_norm/scale': ('model.layers.{layer}.post_attention_layernorm.weight', 0),
  'blocks/mlp/gate': ('model.layers.{layer}.mlp.gate_proj.weight', 1),
  'blocks/mlp/up': ('model.layers.{layer}.mlp.up_proj.weight', 1),
  'blocks/mlp/down': ('model.layers.{layer}.mlp.down_proj.weight', 1),
}
DELTA = {
  'qkv': ('in_proj_qkv.weight', 1),
  'z': ('in_proj_z.weight', 1),
  'out': ('out_proj.weight', 2),
  'rate': ('in_proj_b.weight', 1),
  'decay': ('in_proj_a.weight', 1),
  'kernel': ('conv1d.weight', 0),
  'decay_log': ('A_log', 0),
  'decay_bias': ('dt_bias', 0),
  'norm': ('norm.weight', 0),
}
# What is float32 in memory and in files, whatever the other tensors are.
FLOAT32 = ('delta_net/decay_log', 'delta_net/decay_bias', 'delta_net/norm')
EXPERTS: Mapping[str, tuple[str, int]] = {
  'blocks/mlp/router': ('model.layers.{layer}.mlp.gate.weight', 1),
  'blocks/mlp/gate': ('model.layers.{layer}.mlp.experts.{expert}.gate_proj.weight', 1),
  'blocks/mlp/up': ('model.layers.{layer}.mlp.experts.{expert}.up_proj.weight', 1),
  'blocks/mlp/down': ('model.layers.{layer}.mlp.experts.{expert}.down_proj.weight', 1),
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Piece:
  """One published tensor and the slice of one parameter that it fills."""

  name: str
  path: str
  at: tuple[int, ...]  # (), (layer,) or (layer, expert)
  shape: tuple[int, ...]  # ours, without the axes of `at`
  inputs: int

  @property
  def float32(self) -> bool:
    return self.path.endswith(FLOAT32)

  @property
  def published_shape(self) -> tuple[int, ...]:
    if not self.inputs:
      return (math.prod(self.shape),) if 'bias' in self.name else self.shape
    return math.prod(self.shape[self.inputs :]), math.prod(self.shape[: self.inputs])

  def ours(self, published: np.ndarray) -> np.ndarray:
    return (published.T if self.inputs else published).reshape(self.shape)

  def published(self, ours: np.ndarray) -> np.ndarray:
    return (ours.reshape(self.published_shape[::-1]).T if self.inputs else ours).reshape(
      self.published_shape
    )


def pieces(config: ModelConfig, layout: Layout) -> list[Piece]:
  """Every tensor of a published checkpoint of this model, in the order of our parameters."""
  table = {**TABLE, **(EXPERTS if config.experts else {})}
  table |= {f'delta_{path}': entry for path, entry in table.items() if path.startswith('blocks/')}
  for path, (name, inputs) in DELTA.items():
    table[f'delta_blocks/delta_net/{path}'] = 'model.layers.{layer}.linear_attn.' + name, inputs
  tensors, stacks = [], config.stacks()
  for path, leaf in flat(transformer.abstract(config, layout)).items():
    name, inputs = table[path]
    depth = ('{layer}' in name) + ('{expert}' in name)
    for at in np.ndindex(*leaf.shape[:depth]):
      numbers = (stacks[path.split('/')[0]][at[0]], *at[1:]) if at else ()
      full = name.format(**dict(zip(('layer', 'expert'), numbers, strict=False)))
      tensors.append(Piece(name=full, path=path, at=at, shape=leaf.shape[depth:], inputs=inputs))
  return tensors


def flat(params: Params) -> dict[str, Any]:
  """Nested parameters -> {'blocks/mlp/gate': array}; leaves may be arrays or their abstract shapes."""
  leaves = jax.tree_util.tree_flatten_with_path(params)[0]
  return {'/'.join(str(key.key) for key in path): leaf for path, leaf in leaves}


def nested(params: Mapping[str, Any]) -> Params:
  """The inverse of `flat`."""
  tree: dict = {}
  for path, leaf in params.items():
    *parents, last = path.split('/')
    node = tree
    for parent in parents:
      node = node.setdefault(parent, {})
    node[last] = leaf
  return tree
