"""Floor 3. How far a judge that lies in memory as int8 is from what it would say in its own type."""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from opd_jax.data.prompts import left_padded
from opd_jax.inference import scorer
from opd_jax.judges.local import LocalJudge
from opd_jax.models import transformer
from opd_jax.processes import to_host
from opd_jax.storage import layerwise, load
from opd_jax.units import bytes_of

MOST = 512  # tokens of a row that are compared


class Error(NamedTuple):
  """Of some rows."""

  mean: float  # KL(int8 ‖ its own type), nats a token
  most: float
  tokens: int
  stored: int  # bytes of its weights
  whole: int  # bytes that they would have


def measured(judge: LocalJudge, rows: Sequence[Sequence[int]]) -> Error | None:
  """Compares a judge with its weights as they are published; None where they are random.

  A published folder is read once more, a layer at a time. One in our own format is loaded whole beside the judge.

  Args:
    judge: with int8 weights.
    rows: tokens that it reads.
  """
  assert judge.own is not None and judge.spec.weights is not None
  source, layout, config = judge.spec.weights, judge.layout, judge.config
  if load.is_preset(source):
    return None
  # As often as it takes for all devices to have some.
  times = math.lcm(len(rows), layout.size('batch')) // len(rows)
  short = [row[:MOST] for row in rows]
  batch = left_padded(short * times, width=max(map(len, short)), pad=0)
  start = batch.tokens.shape[1] - batch.length
  types: Any = {'param_dtype': config.param_dtype, 'dtype': config.dtype}
  if load.is_published(source):
    whole = layerwise.hidden_of(source, layout, batch.tokens, start, **types)
  else:
    plain = load.model(source, layout, **types)
    whole = layerwise.states(plain.params, batch.tokens, start, config=plain.config, layout=layout)
  rounded = layerwise.states(judge.own, batch.tokens, start, config=config, layout=layout)
  kl = np.asarray(to_host(_kl(judge.own, rounded, whole, config=config, layout=layout)))
  kl = kl[: len(rows)][np.arange(kl.shape[1]) >= start[: len(rows), None]]
  plain_leaves = transformer.abstract(dataclasses.replace(config, int8=False), layout)
  return Error(
    mean=float(kl.mean()), most=float(kl.max()), tokens=kl.size,
    stored=bytes_of(judge.own), whole=bytes_of(plain_leaves),
  )  # fmt: skip


@layerwise.compiled
def _kl(params, rounded, whole, *, config, layout):
  """KL(p ‖ q) at every position, a few rows of logits at a time; both have the same head."""
  head = transformer.bind(config, layout, params).head()
  shape = rounded.shape[:2]
  flat = [x.reshape(-1, x.shape[-1]) for x in (rounded, whole)]
  tile = scorer.tile_of(config.vocab_size, len(flat[0]))
  padded = [jnp.pad(x, ((0, -len(x) % tile), (0, 0))).reshape(-1, tile, x.shape[-1]) for x in flat]

  def one(pair):
    log_p, log_q = (jax.nn.log_softmax(transformer.logits_of(x, head)) for x in pair)
    return (jnp.exp(log_p) * (log_p - log_q)).sum(axis=-1)

  return jax.lax.map(one, tuple(padded)).reshape(-1)[: len(flat[0])].reshape(shape)
