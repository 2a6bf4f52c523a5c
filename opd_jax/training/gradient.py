"""Floor 5. The gradient of a weighed batch: Σ coefficient · term over microbatches, summed in float32.

`add` takes one microbatch: its gradient is added to what is there. Coefficients know the whole batch, so it does not
matter how it is cut, and a microbatch is only as wide as its own longest row.
"""

import functools
import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from opd_jax import dealing
from opd_jax.inference import scorer
from opd_jax.inference.buckets import bucket
from opd_jax.losses import vocabulary
from opd_jax.losses.terms import Term
from opd_jax.losses.tile import Reading
from opd_jax.losses.vocab_shard import Target, with_heads, without_heads
from opd_jax.method import WeightedTerms
from opd_jax.models import adapters, transformer
from opd_jax.models.config import ModelConfig
from opd_jax.processes import to_host
from opd_jax.sharding import Layout
from opd_jax.types import AnyArray, Params, Rollout

BINS = 8  # of a response, for what is shown along it


class Batch(NamedTuple):
  """A weighed batch: the rollout, the mask of judged tokens, the judges' targets, and the weighted terms."""

  rollout: Rollout
  known: Bool[AnyArray, 'B R']  # `evidence.mask`: tokens that count and are judged
  targets: Mapping[str, Target]
  terms: WeightedTerms


class Total(NamedTuple):
  """Sums over microbatches."""

  loss: Float[Array, '']
  gradient: Params  # float32
  tally: dict[str, Array]  # sums over tokens of what the pass saw


def objective(
  params: Params,
  batch: Batch,
  base: Params = adapters.NO_BASE,
  *,
  config: ModelConfig,
  layout: Layout,
  tile: int | None = None,
  diagnose: str | None = None,
) -> tuple[Float[Array, ''], Reading]:
  """The loss of a batch, or of a part of one: coefficients know the whole, so parts add up."""
  states, head = _states(adapters.joined(base, params), batch.rollout, config, layout)
  return vocabulary.weighted_sum(
    states,
    head,
    batch.rollout.response,
    batch.targets,
    batch.terms,
    layout=layout,
    mask=batch.rollout.mask,
    tile=tile,
    diagnose=diagnose,
  )


def _states(params: Params, rollout: Rollout, config: ModelConfig, layout: Layout):
  model = transformer.bind(config, layout, params)
  prompt = rollout.prompt
  return scorer.states_of(model, prompt.tokens, prompt.length, rollout.response)[0], model.head()


@functools.partial(jax.jit, static_argnames=('config', 'layout'))
def zero_sums(params: Params, *, config: ModelConfig, layout: Layout) -> Total:
  """The empty sum, laid out like the sums that `add` returns, also on one device: `add` is then one program."""
  zero = lambda leaf: jnp.zeros(leaf.shape, jnp.promote_types(leaf.dtype, np.float32))
  pin = lambda x, leaf: jax.lax.with_sharding_constraint(x, leaf.sharding)
  sums = jax.tree.map(pin, jax.tree.map(zero, params), adapters.trained(config, layout))
  return Total(jax.lax.with_sharding_constraint(jnp.zeros(()), layout.sharding()), sums, {})


def placed(tree: Params, config: ModelConfig, layout: Layout) -> Params:
  """A tree like the trained parameters, pinned to where those lie."""
  if layout.is_single:
    return tree
  pin = lambda x, leaf: jax.lax.with_sharding_constraint(x, leaf.sharding)
  return jax.tree.map(pin, tree, adapters.trained(config, layout))


@functools.partial(
  jax.jit,
  static_argnames=('config', 'layout', 'tile', 'diagnose'),
  donate_argnames=('loss', 'gradient'),
)
def add(loss, gradient, params, batch: Batch, base, *, config, layout, tile, diagnose):
  (new, reading), more = jax.value_and_grad(objective, has_aux=True)(
    params, batch, base, config=config, layout=layout, tile=tile, diagnose=diagnose
  )
  gradient = jax.tree.map(lambda old, new: old + new.astype(old.dtype), gradient, more)
  tally = _tally(reading, batch)
  return loss + new.astype(loss.dtype), placed(gradient, config, layout), tally, reading


def _tally(reading: Reading, batch: Batch) -> dict[str, Array]:
  """Sums over the tokens that count: of every reading, in all and along the response."""
  rollout = batch.rollout
  mask = jnp.asarray(rollout.mask)
  known = mask & jnp.asarray(batch.known)
  n = jnp.maximum(mask.sum(axis=1, keepdims=True), 1)
  at = jnp.clip((jnp.cumsum(mask, axis=1) - 1) * BINS // n, 0, BINS - 1)
  bins = at[..., None] == jnp.arange(BINS)  # [B, R, 8]
  counted = dict.fromkeys(reading.teacher, known)
  readings = {'entropy': (reading.entropy, mask)}
  readings |= {f'teacher/{name}': (x, counted[name]) for name, x in reading.teacher.items()}
  tally = {name: jnp.where(where, x, 0.0).sum() for name, (x, where) in readings.items()}
  along = lambda x, where: jnp.where(bins & where[..., None], x[..., None], 0.0).sum(axis=(0, 1))
  for name in ('entropy', 'teacher/reverse_kl', 'teacher/overlap'):
    if name in readings:
      tally[f'curve/{name}'] = along(*readings[name])
  tally['curve/tokens'] = (bins & mask[..., None]).sum(axis=(0, 1))
  tally['curve/known'] = (bins & known[..., None]).sum(axis=(0, 1))
  drawn = mask & rollout.by_student & jnp.isfinite(rollout.logp)
  gap = jnp.where(drawn, jnp.abs(reading.logp - rollout.logp), 0.0)
  return {
    **tally,
    'tokens': mask.sum(),
    'known': known.sum(),
    'drawn': drawn.sum(),
    'gap': gap.sum(),
    'gap_max': gap.max(initial=0.0),
  }


def part(
  batch: Batch, rows: Int[np.ndarray, ' N'], *, width: int, columns: int, layout: Layout
) -> Batch:
  """Some rows of a batch whose rollout is in host memory, cut to a width; the prompt to its last `columns`."""
  rollout, prompt = batch.rollout, batch.rollout.prompt
  cut = lambda x: np.asarray(x)[rows, :width] if np.ndim(x) >= 2 else np.asarray(x)[rows]
  prompt = prompt._replace(tokens=np.asarray(prompt.tokens)[:, prompt.tokens.shape[1] - columns :])
  prompt = jax.tree.map(lambda x: np.asarray(x)[rows], prompt)
  rollout = jax.tree.map(cut, rollout._replace(prompt=None))._replace(prompt=prompt)
  stays = dealing.stay(rows, rows=len(batch.known), pieces=layout.size('batch'))
  known, targets, terms = dealing.taken(
    on_devices(batch), rows, width=width, layout=layout, local=stays
  )
  return Batch(rollout, known, with_heads(targets, batch.targets), terms)


def on_devices(batch: Batch) -> tuple[Any, dict[str, Target], WeightedTerms]:
  """What of a batch has rows and is large: it is dealt where it lies."""
  return batch.known, without_heads(batch.targets), batch.terms


def rows_of_part(rows: int, count: int, *, devices: int) -> int:
  """Rows of a microbatch."""
  return math.ceil(rows / count / devices) * devices


def dealable(rows: int, count: int, *, devices: int) -> bool:
  """Whether so many rows can be dealt to microbatches."""
  return rows % rows_of_part(rows, count, devices=devices) == 0


def microbatches_of(rollout: Rollout, count: int, *, devices: int) -> list[np.ndarray]:
  """Rows of like length together: each microbatch is then as wide as its own longest row. No row leaves its device."""
  rows = len(rollout.response)
  size = rows_of_part(rows, count, devices=devices)
  if rows % size:
    raise ValueError(
      f'update: {rows} rows cannot be dealt to {count} microbatches on {devices} devices: a microbatch would have '
      f'{size} rows. Choose numbers that divide.'
    )
  order = np.argsort(-rollout.lengths.reshape(devices, -1), axis=1, kind='stable')
  order += np.arange(0, rows, rows // devices)[:, None]
  share = size // devices
  return [order[:, begin : begin + share].ravel() for begin in range(0, order.shape[1], share)]


def parts_of(batch: Batch, microbatches: int, *, layout: Layout, rows: np.ndarray | None = None):
  """(rows, part) of every microbatch: rows of like length together, each part as wide as its own longest row.

  Args:
    batch: with a rollout in host memory; terms and targets may lie anywhere.
    microbatches: how many parts.
    layout: of training.
    rows: which rows of the batch; None takes all.
  """
  rollout = batch.rollout
  here = np.arange(len(rollout.response)) if rows is None else rows
  length, asked = rollout.lengths, np.asarray(rollout.prompt.length)
  size, prompt_size = rollout.response.shape[1], rollout.prompt.tokens.shape[1]
  subset = jax.tree.map(lambda x: np.asarray(x)[here], rollout)
  for order in microbatches_of(subset, microbatches, devices=layout.size('batch')):
    members = here[order]
    width = bucket(int(length[members].max()), minimum=min(8, size), maximum=size)
    columns = bucket(int(asked[members].max()), minimum=min(8, prompt_size), maximum=prompt_size)
    yield members, part(batch, members, width=width, columns=columns, layout=layout)


def gradient(
  params: Params,
  batch: Batch,
  base: Params = adapters.NO_BASE,
  *,
  config: ModelConfig,
  layout: Layout,
  microbatches: int = 1,
  rows: np.ndarray | None = None,
  tile: int | None = None,
  diagnose: str | None = None,
) -> tuple[Total, list[tuple[np.ndarray, Reading]]]:
  """The sum over a batch, and the reading of each microbatch with the rows it is of.

  Args:
    params: what is trained; the gradient is theirs.
    batch: see `parts_of`.
    base: what is frozen.
    microbatches: how many passes; the result does not depend on it.
    rows: which rows of the batch; None takes all.
    tile: tokens of a tile of the vocabulary pass; None chooses from shapes.
    diagnose: the judge that readings compare the student with.
  """
  total, readings = zero_sums(params, config=config, layout=layout), []
  loss, sums, tally = total.loss, total.gradient, {}
  for members, piece in parts_of(batch, microbatches, layout=layout, rows=rows):
    loss, sums, seen, reading = add(
      loss, sums, params, piece, base, config=config, layout=layout, tile=tile, diagnose=diagnose
    )
    largest = {'gap_max': jnp.maximum(seen['gap_max'], tally.get('gap_max', 0.0))}
    tally = {name: value + tally.get(name, 0) for name, value in seen.items()} | largest
    readings.append((members, reading))
  return Total(loss, sums, tally), readings


@functools.partial(jax.jit, static_argnames=('config', 'layout', 'terms'))
def _measured(params, batch: Batch, *, config, layout, terms: tuple[tuple[str, Term], ...]):
  states, head = _states(params, batch.rollout, config, layout)
  return vocabulary.measured(
    states,
    head,
    batch.rollout.response,
    batch.targets,
    dict(terms),
    layout=layout,
    mask=batch.rollout.mask,
  )


def measured(
  params: Params,
  batch: Batch,
  terms: Mapping[str, Term],
  *,
  config: ModelConfig,
  layout: Layout,
  microbatches: int = 1,
  begin: int = 0,
) -> dict[str, np.ndarray]:
  """Values of terms at every position, without a gradient: what a method reads before it weighs.

  Args:
    begin: the first row that is looked at; those before it are zero.
  """
  shape = batch.rollout.response.shape
  values = {name: np.zeros(shape, np.float32) for name in terms}
  fixed, here = tuple(terms.items()), np.arange(begin, shape[0])
  devices = layout.size('batch')
  while not dealable(len(here), microbatches, devices=devices):
    here = np.append(here, here[-1])  # measured twice, to the same values
  for rows, piece in parts_of(batch, microbatches, layout=layout, rows=here):
    found = _measured(params, piece, config=config, layout=layout, terms=fixed)
    for name, value in to_host(found).items():
      values[name][rows, : value.shape[1]] = value
  return values
