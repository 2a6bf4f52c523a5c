"""Floor 5. Gradients of the first tokens of a batch, held against that of the whole batch."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from opd_jax.processes import to_host
from opd_jax.training import gradient
from opd_jax.training.gradient import Batch
from opd_jax.training.runtime import StageRuntime
from opd_jax.training.state import RunPosition, State


def probed(
  runtime: StageRuntime, state: State, batch: Batch, position: RunPosition
) -> dict[str, float]:
  """The metrics that `probes.Probe` describes; nothing in a step that is no probe."""
  probe = runtime.stage.method.probe
  if probe is None or position.stage_step % probe.every:
    return {}
  whole = _gradient(runtime, state, batch)
  row, window = {}, probe.windows[-1]
  for length in reversed(probe.windows):
    part = _gradient(runtime, state, first_tokens(batch, length))
    cosine = float(to_host(_cosine(part, whole)))
    row[f'probe/cosine_{length}'] = cosine
    if cosine >= probe.agreement:
      window = length
  return {**row, 'probe/window': float(window)}


def first_tokens(batch: Batch, length: int) -> Batch:
  """The same batch, in which only the first tokens of each response have coefficients."""
  inside = np.cumsum(np.asarray(batch.rollout.mask), axis=1) <= length
  terms = tuple(
    term._replace(coefficient=jnp.where(inside, term.coefficient, 0.0)) for term in batch.terms
  )
  return batch._replace(terms=terms)


def _gradient(runtime: StageRuntime, state: State, batch: Batch) -> Any:
  total, _ = gradient.gradient(
    state.params,
    batch,
    state.base,
    config=runtime.config,
    layout=runtime.layout,
    microbatches=runtime.stage.microbatches * runtime.stage.minibatches,  # as large as an update's
  )
  return total.gradient


@jax.jit
def _cosine(one: Any, other: Any) -> jax.Array:
  def dot(a, b):
    parts = jax.tree.map(lambda x, y: jnp.vdot(x, y, precision='highest'), a, b)
    return sum(jax.tree.leaves(parts), jnp.zeros(()))

  size = jnp.sqrt(dot(one, one)) * jnp.sqrt(dot(other, other))
  return jnp.where(size > 0, dot(one, other) / size, 0.0)
