"""Floor 5. The gradient of one batch: Σ coefficient · term, a microbatch at a time, summed in float32."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from opd_jax.inference import scorer
from opd_jax.losses import vocabulary
from opd_jax.losses.columns import Target
from opd_jax.losses.vocabulary import Reading
from opd_jax.method import Shares
from opd_jax.models import transformer
from opd_jax.models.config import ModelConfig
from opd_jax.sharding import Layout
from opd_jax.types import Params, Rollout


class Batch(NamedTuple):
  """A weighed batch: what was written, what is known of the teacher, and what a method made of it."""

  rollout: Rollout
  target: Target
  shares: Shares


def objective(
  params: Params, batch: Batch, *, config: ModelConfig, layout: Layout, tile: int | None = None, diagnose: bool = False
) -> tuple[Float[Array, ''], Reading]:
  """The loss of a batch, or of a part of one: coefficients know the whole, so parts add up."""
  model = transformer.bind(config, layout, params)
  prompt, response = batch.rollout.prompt, batch.rollout.response
  states, _ = scorer.states_of(model, prompt.tokens, prompt.length, response)
  return vocabulary.weighted_sum(
    states, model.head(), response, batch.target, batch.shares, layout=layout, tile=tile, diagnose=diagnose
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
) -> tuple[Float[Array, ''], Params, Reading]:
  """Loss, gradient and reading of a batch. Trace it under `jit`.

  Args:
    batch: rows are dealt to microbatches in turn, so that each device keeps its own.
    microbatches: how many passes; the result does not depend on it.
    tile: tokens of a tile of the vocabulary pass.
    diagnose: see `vocabulary.weighted_sum`.
  """
  rows = batch.rollout.response.shape[0]
  if rows % (microbatches * layout.size('batch')):
    raise ValueError(
      f'step: {rows} rows cannot be dealt evenly to {microbatches} microbatches on {layout.size("batch")} devices.'
    )

  def deal(x):
    return jnp.moveaxis(x.reshape(rows // microbatches, microbatches, *x.shape[1:]), 1, 0)

  head = batch.target.head
  parts = jax.tree.map(deal, batch._replace(target=batch.target._replace(head=None)))

  def one(total, part):
    part = part._replace(target=part.target._replace(head=head))
    (loss, reading), slope = jax.value_and_grad(objective, has_aux=True)(
      params, part, config=config, layout=layout, tile=tile, diagnose=diagnose
    )
    return jax.tree.map(lambda old, new: old + new.astype(old.dtype), total, (loss, slope)), reading

  wide = lambda leaf: jnp.zeros(leaf.shape, jnp.promote_types(leaf.dtype, np.float32))
  zero = jnp.zeros((), jax.eval_shape(lambda: batch.shares[0].coefficient).dtype), jax.tree.map(wide, params)
  (loss, slope), readings = jax.lax.scan(one, zero, parts)
  whole = lambda x: jnp.moveaxis(x, 0, 1).reshape(rows, *x.shape[2:])
  return loss, slope, jax.tree.map(whole, readings)
