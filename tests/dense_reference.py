"""The vocabulary pass written plainly: whole arrays of logits, one formula a term, differentiated by JAX."""

from collections.abc import Mapping, Sequence

import jax
import jax.numpy as jnp

from opd_jax.losses.divergences import ReverseKL
from opd_jax.losses.rest_rules import OutsideMass
from opd_jax.losses.terms import (
  Candidates,
  ClippedCandidates,
  EntriesAtIds,
  HiddenDistance,
  OnToken,
  WeightedTerm,
)
from opd_jax.losses.vocab_shard import Target, TileView, VocabShard


def values(hidden, head, response, targets: Mapping[str, Target], terms: Sequence[WeightedTerm]):
  """The value of every term at every position: [B, R] each."""
  logits = hidden @ head
  log_p = jax.nn.log_softmax(logits)
  pick = lambda ids: jnp.take_along_axis(log_p, ids, axis=-1)
  written = pick(response[..., None])[..., 0]
  found = []
  for term, _, inputs in terms:
    if isinstance(term, OnToken):
      value = term.value(written, inputs)
    elif isinstance(term, HiddenDistance):
      value = jnp.square(hidden - inputs['hidden']).mean(axis=-1)
    elif isinstance(term, Candidates):
      ids = inputs['ids']
      inside = (ids >= 0) & (ids < head.shape[1])
      value = -jnp.where(inside, inputs['weights'] * pick(jnp.where(inside, ids, 0)), 0.0).sum(-1)
    elif isinstance(term, ClippedCandidates):
      value = _clipped(term, pick, inputs, head.shape[1])
    elif isinstance(term, EntriesAtIds):
      value = _reverse_entries(term, pick, inputs, head.shape[1])
    else:
      value = _divergence(term, logits, targets[term.of])
      if term.ratio is not None:
        ratio = jnp.minimum(jnp.exp(written - inputs['behaviour_logp']), term.ratio.max)
        value = value * jax.lax.stop_gradient(ratio)
    found.append(value)
  return found


def _clipped(term, pick, inputs, size: int):
  """PPO's loss of every candidate that is in the vocabulary."""
  ids, advantage, clip = inputs['ids'], inputs['advantages'], term.clip
  inside = (ids >= 0) & (ids < size)
  ratio = jnp.exp(pick(jnp.where(inside, ids, 0)) - inputs['behaviour_logps'])
  held = jnp.clip(ratio, 1 - clip.low, 1 + clip.high)
  cost = jnp.maximum(-ratio * advantage, -held * advantage)
  cost = jnp.where(advantage < 0, jnp.minimum(cost, -clip.dual * advantage), cost)
  return jnp.where(inside, cost, 0.0).sum(-1)


def _reverse_entries(term, pick, inputs, size: int):
  """Σ p (log p - log q) over ids that are in the vocabulary, as they stand: neither side sums to one."""
  assert term.divergence == ReverseKL()
  ids = inputs['ids']
  inside = (ids >= 0) & (ids < size)
  log_p = pick(jnp.where(inside, ids, 0))
  return jnp.where(inside, jnp.exp(log_p) * (log_p - inputs['log_q']), 0.0).sum(-1)


def loss(hidden, head, response, targets: Mapping[str, Target], terms: Sequence[WeightedTerm]):
  """Σ coefficient · term."""
  each = values(hidden, head, response, targets, terms)
  products = [
    (weighted.coefficient * value).sum() for weighted, value in zip(terms, each, strict=True)
  ]
  return sum(products, jnp.zeros(()))


def _divergence(term, logits, target: Target):
  """Both models' logits are divided by the temperature; the judge has no gradient."""
  soft = lambda logits: jax.nn.log_softmax(logits / term.temperature)
  flat = lambda x: x.reshape(-1, x.shape[-1])
  log_p, log_q = flat(soft(logits)), None
  if target.hidden is not None:
    log_q = flat(jax.lax.stop_gradient(soft(target.hidden @ target.head)))
  sparse = target._replace(hidden=None, head=None) if term.temperature == 1.0 else Target()
  view = TileView(
    VocabShard((), logits.shape[-1]),
    jax.lax.stop_gradient(log_p),
    log_q,
    jax.tree.map(flat, sparse),
    term.of,
  )
  compared = term.support.entries.find(view)
  if compared is None:
    value = term.divergence(log_p, log_q)
  else:
    picked = jnp.take_along_axis(log_p, compared.ids, axis=-1)
    value = term.support.value(term.divergence, picked, compared, OutsideMass())
  if term.max_per_token is not None:
    value = jnp.minimum(value, term.max_per_token)
  return value.reshape(logits.shape[:-1])
