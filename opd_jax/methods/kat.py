"""KAT, arXiv:2606.09471: nothing is learnt behind the point where teacher and student merely agree."""

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from opd_jax import rollouts
from opd_jax.claims import Nothing
from opd_jax.losses.divergences import ReverseKL
from opd_jax.losses.normalisers import per_token
from opd_jax.losses.supports import FULL
from opd_jax.losses.terms import DivergenceTerm
from opd_jax.method import Evidence, Method, Requirements, WeightedTerms
from opd_jax.types import AnyArray


def kat(
  *,
  window: int = 64,
  windows: int = 4,
  eta: float = 0.3,
  exempt: int = 16,
  warmup: int = 50,
  buffer: int = 4096,
  min_entries: int = 512,
) -> Method:
  r"""Reverse KL up to the first stretch of low KL, after which a teacher only continues the student's text.

      z_t = mean of KL(p ‖ q) over t - W + 1 … t;      a response ends before the first of T windows in a row with z < s

  arXiv:2606.09471. s is the (1 - η) quantile of min_t z_t over the last responses. Departs: responses are written to
  their end and cut afterwards, the same loss without the saving; the KL is over the whole vocabulary, where the paper
  takes the student's top 64 and a tail. Cuts where the text says; its pseudocode cuts where the windows end.

  Args:
    window, windows: W and T.
    eta: η; a smaller one raises the threshold, whatever the text says.
    exempt: tokens at the beginning that no window may hold (16 for 1.7B, 32 for 4B).
    warmup, min_entries: steps, and responses in memory, before anything is cut.
    buffer: responses that are remembered.
  """
  if min(window, windows, buffer, min_entries) < 1 or not 0 <= eta <= 1 or min_entries > buffer:
    raise ValueError(
      'kat: window, windows and min_entries must be at least 1, min_entries at most buffer, eta between 0 and 1; got '
      f'{window}, {windows}, {min_entries}, {buffer}, {eta}.'
    )
  term = DivergenceTerm(divergence=ReverseKL(), support=FULL)

  def means(evidence: Evidence) -> Float[Array, 'B R']:
    """z, by the last position of its window; infinite where no window ends."""
    total = jnp.cumsum(evidence.measures['gap'], axis=1)
    before = jnp.pad(total, ((0, 0), (window, 0)))[:, : total.shape[1]]
    ends = evidence.mask & (jnp.cumsum(evidence.mask, axis=1) >= exempt + window)
    return jnp.where(ends, (total - before) / window, jnp.inf)

  def kept(evidence: Evidence) -> Bool[AnyArray, 'B R']:
    minima, column = evidence.memory, jnp.arange(evidence.mask.shape[1])
    active = (evidence.step >= warmup) & (jnp.isfinite(minima).sum() >= min_entries)
    threshold = jnp.nanquantile(jnp.where(active, minima, 0.0), 1 - eta)
    low = active & (means(evidence) < threshold)
    shifted = [jnp.pad(low, ((0, 0), (back, 0)))[:, : len(column)] for back in range(windows)]
    stop = jnp.stack(shifted).all(axis=0)
    begin = jnp.argmax(stop, axis=1, keepdims=True) - (windows - 1) - (window - 1)
    return evidence.mask & (~stop.any(axis=1, keepdims=True) | (column < begin))

  def weigh(evidence: Evidence) -> WeightedTerms:
    return (term(per_token(kept(evidence))),)

  def remember(evidence: Evidence) -> Float[Array, ' M']:
    """The newest first; a response without a window is not remembered."""
    least = means(evidence).min(axis=1, initial=jnp.inf).astype(evidence.memory.dtype)
    both = jnp.concatenate([jnp.where(jnp.isfinite(least), least, jnp.nan), evidence.memory])
    return both[jnp.argsort(jnp.isnan(both), stable=True)][:buffer]

  return Method(
    rollout=rollouts.student(),
    needs=Requirements(measures={'gap': term}),
    weigh=weigh,
    claim=Nothing('tokens behind a stretch of agreement are dropped'),
    memory=np.full(buffer, np.nan, np.float32),  # of numpy: methods are listed without a device
    remember=remember,
    paper='arXiv:2606.09471',
  )
