"""Floor 1. The mixture-of-experts MLP: route, sort tokens by expert, one ragged product per matrix.

Experts that lie on several devices whole are in `expert_parallel.py`.
"""

from collections.abc import Mapping, Sequence

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import PartitionSpec
from jaxtyping import Array, Float, Int

from opd_jax.models import expert_parallel, int8, lora
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

  outputs = feed(visits, sizes, ((gate, up, down), adapters))
  # Sorting back by inverse permutation is a gather; a scatter-add would sum in an undefined order.
  outputs = outputs[jnp.argsort(order)].reshape(*chosen.shape, -1)
  return jnp.einsum('mcd,mc->md', outputs, weights.astype(x.dtype))


def feed(
  x: Float[Array, 'M D'], sizes: Int[Array, ' E'], matrices: tuple[Sequence[Array], Adapters]
) -> Float[Array, 'M D']:
  """The outputs of rows that are sorted by expert.

  Args:
    sizes: rows of each expert.
    matrices: gate, up and down of each expert, and the adapters of `mixture`.
  """
  (gate, up, down), adapters = matrices

  def product(x, name, matrix):
    y = jax.lax.ragged_dot(x, matrix, sizes)
    if name not in adapters:
      return y
    a, b = adapters[name]
    return y + jax.lax.ragged_dot(jax.lax.ragged_dot(x, a, sizes), b, sizes)

  hidden = jax.nn.silu(product(x, 'gate', gate)) * product(x, 'up', up)
  return product(hidden, 'down', down)


class ExpertMLP(nnx.Module):
  """Devices route their own tokens. Experts are cut along their width, as a dense MLP is, or lie on devices whole."""

  def __init__(self, config: ModelConfig, layout: Layout, *, rngs: nnx.Rngs):
    assert config.experts is not None
    self.experts, self.layout = config.experts, layout
    count, width, dtype = self.experts.count, self.experts.width, config.param_dtype
    wide, narrow = (count, config.width, width), (count, width, config.width)
    axes = ('experts', 'expert_embed', 'expert_mlp')
    self.router = weight(rngs, (config.width, count), ('embed', None), inputs=1, dtype=dtype)
    self.router = nnx.Param(self.router[...].astype(jnp.float32), axes=('embed', None))
    self.gate = weight(rngs, wide, axes, inputs=1, dtype=dtype)
    self.up = weight(rngs, wide, axes, inputs=1, dtype=dtype)
    self.down = weight(
      rngs, narrow, ('experts', 'expert_mlp', 'expert_embed'), inputs=1, dtype=dtype
    )
    inputs: dict[str, int] = dict.fromkeys(NAMES, 1)
    lora.adapt(self, config.lora, inputs, leading=1, rngs=rngs)
    if config.int8:
      int8.store(self, inputs, leading=1)

  def __call__(self, x: Float[Array, 'B T D']) -> Float[Array, 'B T D']:
    weights = tuple(int8.matrix(self, name, x.dtype) for name in NAMES)
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
    layout = self.layout
    tokens, cut = layout.spec('batch', 'length'), layout.mesh_axes('expert_mlp')
    own, split = layout.spec('experts', 'expert_mlp')
    by_expert, whole = PartitionSpec(own), PartitionSpec()
    wide, narrow = PartitionSpec(own, None, split), PartitionSpec(own, split, None)
    pairs = {'gate': (by_expert, wide), 'up': (by_expert, wide), 'down': (narrow, by_expert)}
    pairs = {name: pairs[name] for name in adapters}

    def body(x, router, gate, up, down, adapters):
      partial_sum = self._of_owners if layout.size('experts') > 1 else self._local
      partial_sum = partial_sum(x, router, gate, up, down, adapters)
      return jax.lax.psum(partial_sum, cut) if cut else partial_sum

    spread = jax.shard_map(
      body,
      mesh=layout.mesh,
      in_specs=(tokens, whole, wide, wide, narrow, pairs),
      out_specs=tokens,
      check_vma=False,
    )
    return spread(x, router, gate, up, down, adapters)

  def _of_owners(self, x, router, gate, up, down, adapters):
    flat = x.reshape(-1, x.shape[-1])
    chosen, weights = route(flat, router, self.experts)
    matrices = (gate, up, down), adapters
    axes = self.layout.mesh_axes('experts')
    outputs = expert_parallel.shared(
      flat, chosen, weights, matrices, feed, count=gate.shape[0], axes=axes
    )
    return outputs.reshape(x.shape)
