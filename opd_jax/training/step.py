"""Floor 5. The update: Σ coefficient · term over microbatches, summed in float32, then one step of the optimiser.

Two programs. `add` takes one microbatch: its gradient is added to what is there. `apply` turns the sum into new
weights. Coefficients know the whole batch, so it does not matter how it is cut, and a microbatch is only as wide as its
own longest row.
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float

from opd_jax import rollouts
from opd_jax.inference import sampler, scorer
from opd_jax.losses import vocabulary
from opd_jax.losses.tile import Reading
from opd_jax.losses.vocab_shard import Target
from opd_jax.method import WeightedTerms
from opd_jax.models import transformer
from opd_jax.models.config import ModelConfig
from opd_jax.sharding import Layout
from opd_jax.types import Params, Rollout

BINS = 8  # of a response, for what is shown along it


class Batch(NamedTuple):
  """A weighed batch: what was written, what is known of the teacher, and what a method made of it."""

  rollout: Rollout
  target: Target
  weighted_terms: WeightedTerms


class State(NamedTuple):
  """What a run changes and a checkpoint keeps."""

  params: Params
  optimiser: Any
  selves: dict[str, Params]  # judges that are earlier selves of the student, by name


class Total(NamedTuple):
  """Sums over microbatches."""

  loss: Float[Array, '']
  slope: Params  # float32
  tally: dict[str, Array]  # sums over tokens of what the pass saw


def objective(
  params: Params,
  batch: Batch,
  *,
  config: ModelConfig,
  layout: Layout,
  tile: int | None = None,
  diagnose: bool = False,
) -> tuple[Float[Array, ''], Reading]:
  """The loss of a batch, or of a part of one: coefficients know the whole, so parts add up."""
  model = transformer.bind(config, layout, params)
  prompt, response = batch.rollout.prompt, batch.rollout.response
  states, _ = scorer.states_of(model, prompt.tokens, prompt.length, response)
  return vocabulary.weighted_sum(
    states,
    model.head(),
    response,
    batch.target,
    batch.weighted_terms,
    layout=layout,
    mask=batch.rollout.mask,
    tile=tile,
    diagnose=diagnose,
  )


@functools.partial(jax.jit, static_argnames=('config', 'layout'))
def zero_sums(params: Params, *, config: ModelConfig, layout: Layout) -> Total:
  """The empty sum, laid out like the parameters."""
  zero = lambda leaf: jnp.zeros(leaf.shape, jnp.promote_types(leaf.dtype, np.float32))
  return Total(
    loss=jnp.zeros(()), slope=placed(jax.tree.map(zero, params), config, layout), tally={}
  )


def placed(tree: Params, config: ModelConfig, layout: Layout) -> Params:
  """A tree like the parameters, pinned to where those lie."""
  if layout.is_single:
    return tree
  return jax.tree.map(
    lambda x, leaf: jax.lax.with_sharding_constraint(x, leaf.sharding),
    tree,
    transformer.abstract(config, layout),
  )


@functools.partial(
  jax.jit,
  static_argnames=('config', 'layout', 'tile', 'diagnose'),
  donate_argnames=('loss', 'slope'),
)
def _add(loss, slope, params, batch: Batch, *, config, layout, tile, diagnose):
  (new, reading), more = jax.value_and_grad(objective, has_aux=True)(
    params, batch, config=config, layout=layout, tile=tile, diagnose=diagnose
  )
  slope = jax.tree.map(lambda old, new: old + new.astype(old.dtype), slope, more)
  return (
    loss + new.astype(loss.dtype),
    placed(slope, config, layout),
    _tally(reading, batch),
    reading,
  )


def _tally(reading: Reading, batch: Batch) -> dict[str, Array]:
  """Sums over the tokens that count: of every reading, in all and along the response."""
  rollout = batch.rollout
  mask = jnp.asarray(rollout.mask)
  n = jnp.maximum(mask.sum(axis=1, keepdims=True), 1)
  place = jnp.clip((jnp.cumsum(mask, axis=1) - 1) * BINS // n, 0, BINS - 1)
  bins = (place[..., None] == jnp.arange(BINS)) & mask[..., None]  # [B, R, 8]
  known = {
    'entropy': reading.entropy,
    **{f'teacher/{name}': x for name, x in reading.teacher.items()},
  }
  found = {name: jnp.where(mask, x, 0.0).sum() for name, x in known.items()}
  for name in ('entropy', 'teacher/reverse_kl', 'teacher/overlap'):
    if name in known:
      found[f'curve/{name}'] = jnp.where(bins, known[name][..., None], 0.0).sum(axis=(0, 1))
  found['curve/tokens'] = bins.sum(axis=(0, 1))
  drawn = mask & rollout.by_student & jnp.isfinite(rollout.logp)
  gap = jnp.where(drawn, jnp.abs(reading.logp - rollout.logp), 0.0)
  return {
    **found,
    'tokens': mask.sum(),
    'drawn': drawn.sum(),
    'gap': gap.sum(),
    'gap_most': gap.max(initial=0.0),
  }


@functools.partial(jax.jit, static_argnames=('width', 'before', 'layout'))
def _part(batch: Batch, rows: Array, *, width: int, before: int, layout: Layout) -> Batch:
  """Some rows of a batch, cut to a width; the prompt to its last `before` columns."""

  def pick(x):
    x = jnp.asarray(x)[rows]
    x = x[:, :width] if x.ndim >= 2 else x
    return layout.constrain(x, 'batch', *[None] * (x.ndim - 1))

  prompt = batch.rollout.prompt
  prompt = prompt._replace(tokens=prompt.tokens[:, prompt.tokens.shape[1] - before :])
  rollout = batch.rollout._replace(prompt=jax.tree.map(lambda x: jnp.asarray(x)[rows], prompt))
  rest = rollout._replace(prompt=None)
  target = batch.target._replace(head=None)
  rest, target, weighted_terms = jax.tree.map(pick, (rest, target, batch.weighted_terms))
  return Batch(
    rest._replace(prompt=rollout.prompt), target._replace(head=batch.target.head), weighted_terms
  )


def gradient(
  params: Params,
  batch: Batch,
  *,
  config: ModelConfig,
  layout: Layout,
  microbatches: int = 1,
  tile: int | None = None,
  diagnose: bool = False,
) -> tuple[Total, list[tuple[np.ndarray, Reading]]]:
  """The sum over a batch, and the reading of each microbatch with the rows it is of.

  Args:
    batch: with a rollout in host memory; weighted_terms and target may lie anywhere.
    microbatches: how many passes; the result does not depend on it.
    tile: tokens of a tile of the vocabulary pass; None chooses from shapes.
    diagnose: see `vocabulary.weighted_sum`.
  """
  total, readings = zero_sums(params, config=config, layout=layout), []
  loss, slope, tally = total.loss, total.slope, {}
  length = rollouts.lengths(batch.rollout)
  asked = np.asarray(batch.rollout.prompt.length)
  size, prompt_size = batch.rollout.response.shape[1], batch.rollout.prompt.tokens.shape[1]
  for rows in rollouts.microbatches_of(batch.rollout, microbatches, devices=layout.size('batch')):
    width = sampler.bucket(int(length[rows].max()), least=min(8, size), most=size)
    before = sampler.bucket(int(asked[rows].max()), least=min(8, prompt_size), most=prompt_size)
    part = _part(batch, rows, width=width, before=before, layout=layout)
    loss, slope, seen, reading = _add(
      loss, slope, params, part, config=config, layout=layout, tile=tile, diagnose=diagnose
    )
    most = {'gap_most': jnp.maximum(seen['gap_most'], tally.get('gap_most', 0.0))}
    tally = {name: value + tally.get(name, 0) for name, value in seen.items()} | most
    readings.append((rows, reading))
  return Total(loss, slope, tally), readings


@functools.lru_cache(maxsize=16)
def abstract_state(
  optimiser: optax.GradientTransformation, config: ModelConfig, layout: Layout
) -> Any:
  """Shapes and shardings of the optimiser's state: each moment lies like its parameter."""
  leaves = transformer.abstract(config, layout)
  here = lambda x, leaf: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=leaf.sharding)
  whole = lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=layout.sharding())
  shapes = jax.eval_shape(optimiser.init, leaves)
  return optax.tree.map_params(optimiser, here, shapes, leaves, transform_non_params=whole)


def _shardings(tree: Any) -> Any:
  return jax.tree.map(lambda leaf: leaf.sharding, tree)


def optimiser_state(
  optimiser: optax.GradientTransformation, params: Params, config: ModelConfig, layout: Layout
) -> Any:
  """A fresh one."""
  return jax.jit(
    optimiser.init, out_shardings=_shardings(abstract_state(optimiser, config, layout))
  )(params)


@functools.partial(
  jax.jit, static_argnames=('optimiser', 'config', 'layout'), donate_argnames=('params', 'state')
)
def apply(
  params: Params,
  state: Any,
  loss: Array,
  slope: Params,
  *,
  optimiser,
  config: ModelConfig,
  layout: Layout,
):
  """New weights and optimiser state, and how large gradient and update were. What is not finite changes nothing."""
  norm = optax.tree.norm(slope)
  sound = jnp.isfinite(norm) & jnp.isfinite(loss)
  updates, after = optimiser.update(slope, state, params)
  moved = optax.apply_updates(params, updates)
  keep = lambda new, old: jnp.where(sound, new, old)
  params, state = jax.tree.map(keep, moved, params), jax.tree.map(keep, after, state)
  told = {
    'loss': loss,
    'grad_norm': norm,
    'update_norm': optax.tree.norm(updates),
    'param_norm': optax.tree.norm(params),
  }
  if not layout.is_single:
    state = jax.lax.with_sharding_constraint(
      state, _shardings(abstract_state(optimiser, config, layout))
    )
  return placed(params, config, layout), state, told


def compiles() -> int:
  """Programs compiled so far by the verbs of a run."""
  from opd_jax.inference import decode_programs

  programs: tuple[Any, ...] = (
    _add,
    _part,
    apply,
    scorer.score,
    decode_programs.decode,
    decode_programs.prefill,
    decode_programs.admit,
  )
  return sum(program._cache_size() for program in programs)
