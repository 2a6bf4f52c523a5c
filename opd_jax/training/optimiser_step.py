"""Floor 5. One step of the optimiser: its state lies like the parameters; a step that is not finite is skipped."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array

from opd_jax import dealing
from opd_jax.inference import decode_programs, scorer
from opd_jax.models import adapters
from opd_jax.models.config import ModelConfig
from opd_jax.sharding import Layout
from opd_jax.training import gradient as gradients
from opd_jax.types import Params


@functools.lru_cache(maxsize=16)
def abstract_optimiser(
  optimiser: optax.GradientTransformation, config: ModelConfig, layout: Layout
) -> Any:
  """Shapes and shardings of the optimiser's state: each moment lies like its parameter."""
  leaves = adapters.trained(config, layout)
  like = lambda x, leaf: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=leaf.sharding)
  whole = lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=layout.sharding())
  shapes = jax.eval_shape(optimiser.init, leaves)
  return optax.tree.map_params(optimiser, like, shapes, leaves, transform_non_params=whole)


def _shardings(tree: Any) -> Any:
  return jax.tree.map(lambda leaf: leaf.sharding, tree)


def optimiser_state(
  optimiser: optax.GradientTransformation, params: Params, config: ModelConfig, layout: Layout
) -> Any:
  """A fresh one."""
  shardings = _shardings(abstract_optimiser(optimiser, config, layout))
  return jax.jit(optimiser.init, out_shardings=shardings)(params)


@functools.partial(
  jax.jit, static_argnames=('optimiser', 'config', 'layout'), donate_argnames=('params', 'state')
)
def apply(
  params: Params,
  state: Any,
  loss: Array,
  gradient: Params,
  *,
  optimiser: optax.GradientTransformation,
  config: ModelConfig,
  layout: Layout,
):
  """New weights and optimiser state, and how large gradient and update were. What is not finite changes nothing."""
  norm = optax.tree.norm(gradient)
  sound = jnp.isfinite(norm) & jnp.isfinite(loss)
  keep = lambda new, old: jnp.where(sound, new, old)
  with jax.named_scope('optimiser'):
    updates, after = optimiser.update(gradient, state, params)
    moved = optax.apply_updates(params, updates)
    params, state = jax.tree.map(keep, moved, params), jax.tree.map(keep, after, state)
  sizes = {
    'loss': loss,
    'grad_norm': norm,
    'update_norm': optax.tree.norm(updates),
    'param_norm': optax.tree.norm(params),
  }
  if not layout.is_single:
    shardings = _shardings(abstract_optimiser(optimiser, config, layout))
    state = jax.lax.with_sharding_constraint(state, shardings)
  return gradients.placed(params, config, layout), state, sizes


def compiled_programs() -> int:
  """Programs compiled so far by the verbs of a run."""
  programs: tuple[Any, ...] = (
    gradients.add,
    dealing.taken,
    apply,
    scorer.score,
    decode_programs.decode,
    decode_programs.prefill,
    decode_programs.admit,
  )
  return sum(program._cache_size() for program in programs)
