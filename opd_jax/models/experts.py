"""Floor 1. The mixture-of-experts MLP: route, sort tokens by expert, one ragged product per matrix."""

from collections.abc import Mapping

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import PartitionSpec
from jaxtyping import Array, Float, Int

from opd_jax.models import lora
from opd_jax.models.config import Experts, ModelConfig
from opd_jax.models.layers import weight
from opd_jax.sharding import Layout

NAMES = ('gate', 'up', 'down')
Adapters = Mapping[str, tuple[Array, Array]]
NO_ADAPTERS: Adapters = {}


def route(
  x: Float[Array, 'M D'], router: Float[Array, 'D E'], experts: Experts
) -> tuple[Int[Array, 'M C'], Float[Array, 'M C']]:
  """Returns the experts of each token and the weight of each expert's output; float32 keeps near ties apart."""
  # By default an accelerator multiplies float32 matrices with fewer bits.
  logits = jnp.matmul(x.astype(jnp.float32), router, precision='highest')
  probabilities = jax.nn.softmax(logits, axis=-1)
  weights, chosen = jax.lax.top_k(probabilities, experts.per_token)
  if experts.normalise:
    weights = weights / weights.sum(axis=-1, keepdims=True)
  return chosen, weights


def mixture(
  x: Float[Array, 'M D'],
  router: Float[Array, 'D E'],
  gate: Float[Array, 'E D F'],
  up: Float[Array, 'E D F'],
  down: Float[Array, 'E F D'],
  adapters: Adapters = NO_ADAPTERS,
  *,
  experts: Experts,
) -> Float[Array, 'M D']:
  """Sends every token through its experts; none is dropped, so a result does not depend on the other tokens.

  Args:
    adapters: A [E in rank] and B [E rank out] of those of 'gate', 'up' and 'down' that have them.
  """
  chosen, weights = route(x, router, experts)
  order = jnp.argsort(chosen.reshape(-1))  # pairs of a token and an expert, sorted by expert
  visits = x[order // experts.per_token]
  sizes = jnp.bincount(chosen.reshape(-1), length=experts.count).astype(jnp.int32)

  def product(x, name, matrix):
    y = jax.lax.ragged_dot(x, matrix, sizes)
    if name not in adapters:
      return y
    a, b = adapters[name]
    return y + jax.lax.ragged_dot(jax.lax.ragged_dot(x, a, sizes), b, sizes)

  hidden = jax.nn.silu(product(visits, 'gate', gate)) * product(visits, 'up', up)
  outputs = product(hidden, 'down', down)
  # Sorting back by inverse permutation is a gather; a scatter-add would sum in an undefined order.
  outputs = outputs[jnp.argsort(order)].reshape(*chosen.shape, -1)
  return jnp.einsum('mcd,mc->md', outputs, weights.astype(x.dtype))


class ExpertMLP(nnx.Module):
  """Shards every expert along its width, as a dense MLP; each device routes its own tokens."""

  def __init__(self, config: ModelConfig, layout: Layout, *, rngs: nnx.Rngs):
    assert config.experts is not None
    self.experts, self.layout = config.experts, layout
    count, width, dtype = self.experts.count, self.experts.width, config.param_dtype
    wide, narrow = (count, config.width, width), (count, width, config.width)
    axes = ('experts', 'embed', 'expert_mlp')
    self.router = weight(rngs, (config.width, count), ('embed', 'experts'), inputs=1, dtype=dtype)
    self.router = nnx.Param(self.router[...].astype(jnp.float32), axes=('embed', 'experts'))
    self.gate = weight(rngs, wide, axes, inputs=1, dtype=dtype)
    self.up = weight(rngs, wide, axes, inputs=1, dtype=dtype)
    self.down = weight(rngs, narrow, ('experts', 'expert_mlp', 'embed'), inputs=1, dtype=dtype)
    lora.adapt(self, config.lora, dict.fromkeys(NAMES, 1), leading=1, rngs=rngs)

  def __call__(self, x: Float[Array, 'B T D']) -> Float[Array, 'B T D']:
    weights = tuple(lora.matrix(self, name, x.dtype) for name in NAMES)
    adapters = {
      name: getattr(self, name + lora.ADAPTER).pair(x.dtype)
      for name in NAMES
      if hasattr(self, name + lora.ADAPTER)
    }
    if self.layout.is_single:
      return self._local(x, self.router[...], *weights, adapters=adapters)
    return self._sharded(x, self.router[...], *weights, adapters=adapters)

  def _local(self, x, router, gate, up, down, adapters):
    flat = x.reshape(-1, x.shape[-1])
    return mixture(flat, router, gate, up, down, adapters, experts=self.experts).reshape(x.shape)

  def _sharded(self, x, router, gate, up, down, adapters):
    # The compiler cannot shard a ragged product. Each device sorts its own tokens and holds a slice of
    # every expert, so one psum over the axes that shard the experts' width is the only communication.
    batch, cut = self.layout.spec('batch')[0], self.layout.mesh_axes('expert_mlp')
    split = self.layout.spec('expert_mlp')[0]
    wide, narrow = PartitionSpec(None, None, split), PartitionSpec(None, split, None)
    whole = PartitionSpec()
    pairs = {'gate': (whole, wide), 'up': (whole, wide), 'down': (narrow, whole)}
    pairs = {name: pairs[name] for name in adapters}

    def body(x, router, gate, up, down, adapters):
      partial_sum = self._local(x, router, gate, up, down, adapters)
      return jax.lax.psum(partial_sum, cut) if cut else partial_sum

    spread = jax.shard_map(
      body,
      mesh=self.layout.mesh,
      in_specs=(PartitionSpec(batch), whole, wide, wide, narrow, pairs),
      out_specs=PartitionSpec(batch),
      check_vma=False,
    )
    return spread(x, router, gate, up, down, adapters)
