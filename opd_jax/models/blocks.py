"""Floor 1. One layer of a decoder, and what the backward pass keeps of it."""

import jax
from flax import nnx

from opd_jax.models.attention import Attention
from opd_jax.models.config import ModelConfig
from opd_jax.models.delta_net import DeltaNet
from opd_jax.models.experts import ExpertMLP
from opd_jax.models.layers import GatedMLP, RMSNorm
from opd_jax.sharding import Layout


def _keep_products(primitive, *arguments, **settings) -> bool:
  """Products of matrices, also of experts and of cuDNN's attention, which JAX's own policy does not know."""
  known = primitive.name.startswith(('ragged_dot', 'dot_product_attention_fwd'))
  return known or jax.checkpoint_policies.dots_with_no_batch_dims_saveable(
    primitive, *arguments, **settings
  )


POLICIES = {
  'dots': _keep_products,
  'full': jax.checkpoint_policies.nothing_saveable,
  'offload': jax.checkpoint_policies.save_and_offload_only_these_names(
    names_which_can_be_saved=[],
    names_which_can_be_offloaded=['layer input'],
    offload_src='device',
    offload_dst='pinned_host',
  ),
}


class Block(nnx.Module):
  """Attention or a delta-net, then the MLP: each reads a normed copy of the states and adds its output to them."""

  def __init__(self, config: ModelConfig, layout: Layout, *, attends: bool, rngs: nnx.Rngs):
    self.attends = attends
    self.attention_norm = RMSNorm(config.width, 'embed', config=config)
    if attends:
      self.attention = Attention(config, layout, rngs=rngs)
    else:
      self.delta_net = DeltaNet(config, layout, rngs=rngs)
    self.mlp_norm = RMSNorm(config.width, 'embed', config=config)
    self.mlp = (ExpertMLP if config.experts else GatedMLP)(config, layout, rngs=rngs)

  def __call__(self, x, table, *, start, cache, layer, count=None):
    """`layer` is its number among those of its kind, whose keys or states the cache holds."""
    with jax.named_scope('attention' if self.attends else 'delta_net'):
      normed = self.attention_norm(x)
      if self.attends:
        mixed, cache = self.attention(normed, table, start=start, cache=cache, layer=layer)
      else:
        mixed, cache = self.delta_net(normed, start=start, cache=cache, layer=layer, count=count)
      x = x + mixed
    with jax.named_scope('mlp'):
      return x + self.mlp(self.mlp_norm(x)), cache
