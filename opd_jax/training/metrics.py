"""Floor 5. What a step tells of itself: of its text, its evidence, and what the vocabulary pass saw."""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from opd_jax.data.problems import Problem
from opd_jax.forks import without_forks
from opd_jax.losses import chunks, weights
from opd_jax.losses.terms import DivergenceTerm
from opd_jax.method import Evidence, WeightedTerms
from opd_jax.types import ENDINGS, AnyArray, Rollout


def of_rollout(rollout: Rollout, *, step: int) -> dict[str, float]:
  """What can be said of a batch without any model."""
  length, ended = rollout.lengths, np.asarray(rollout.ended_by)
  fraction = lambda name: float((ended == ENDINGS.index(name)).mean())
  counted = max(np.asarray(rollout.mask).sum(), 1)
  metrics = {
    'length': float(length.mean()),
    'length_max': float(length.max()),
    'truncated': fraction('budget') + fraction('context'),
    'looping': fraction('repetition'),
    'repeats': float(_repeats(np.asarray(rollout.response), length).mean()),
    'by_student': float((rollout.by_student & rollout.mask).sum() / counted),
    'staleness': float(np.mean(step - np.asarray(rollout.version))),
  }
  if np.isfinite(rollout.reward).any():
    metrics['reward'] = float(np.nanmean(rollout.reward))
  return metrics


def of_routes(problems: Sequence[Problem]) -> dict[str, float]:
  """The fraction of a batch that each task of a mixture has; nothing where problems have no routes."""
  counts = Counter(problem.route for problem in problems if problem.route)
  return {f'asked/{route}': count / len(problems) for route, count in sorted(counts.items())}


def _repeats(
  tokens: Int[np.ndarray, 'B R'], length: Int[np.ndarray, ' B']
) -> Float[np.ndarray, ' B']:
  """The fraction of the 3-grams of each row that occurred before in it."""
  room = 21  # bits of a token
  tokens = tokens.astype(np.int64)
  grams = (tokens[:, :-2] << 2 * room) | (tokens[:, 1:-1] << room) | tokens[:, 2:]
  counts = np.maximum(length - 2, 0)
  grams[np.arange(grams.shape[1]) >= counts[:, None]] = -1
  ordered = np.sort(grams, axis=1)
  fresh = np.diff(ordered, axis=1, prepend=-1) != 0  # -1 stands before the first
  return np.where(counts > 0, 1 - fresh.sum(axis=1) / np.maximum(counts, 1), 0.0)


@jax.jit
def of_evidence(evidence: Evidence, terms: WeightedTerms) -> dict[str, Array]:
  """What can be said of a weighed batch: the gap to the teacher, and what the method does with it."""
  mask = without_forks(jnp.asarray(evidence.mask), evidence.forks)
  count = jnp.maximum(mask.sum(), 1)
  mean = lambda x: jnp.where(mask, x, 0.0).sum() / count
  metrics = {}
  if 'teacher' in evidence.scores:
    gap = evidence.scores['teacher'].logp - evidence.scores['student'].logp
    gap = jnp.where(mask, gap, jnp.nan)  # NaN also where nobody scored the student
    metrics = {'log_ratio': jnp.nanmean(gap), 'log_ratio_zero': mean(gap == 0)}
    for level in (0.05, 0.5, 0.95):
      metrics[f'log_ratio_{level:g}'] = jnp.nanquantile(gap, level)
    metrics |= _predictive(evidence, gap)
    metrics |= _of_chunks(evidence, evidence.scores['teacher'].chunk)
  active = [(isinstance(term, DivergenceTerm), weight != 0) for term, weight, _ in terms]
  guided = [where for on_support, where in active if on_support]
  if guided and len(guided) < len(terms):  # a method that chooses between them
    metrics['intervened'] = mean(jnp.stack(guided).any(axis=0))
  return metrics | {'idle': mean(~jnp.stack([where for _, where in active]).any(axis=0))}


def _of_chunks(evidence: Evidence, chunk: AnyArray | None) -> dict[str, Array]:
  """How the tokens of a teacher with another tokenizer lie beside the student's."""
  if chunk is None:
    return {}
  written = without_forks(jnp.asarray(evidence.rollout.mask), evidence.forks)
  stray = (written & (chunk < 0)).sum()
  judged = jnp.maximum(written.sum() - stray, 1)
  return {
    'unaligned': stray / jnp.maximum(written.sum(), 1),
    'chunk_tokens': judged / jnp.maximum((written & chunks.first(chunk)).sum(), 1),
  }


def _predictive(evidence: Evidence, gap: Array) -> dict[str, Array]:
  """What is said to foretell whether a teacher helps; NaN where the batch cannot tell.

  `outcome_gap`: the gap to the teacher on right responses minus that on wrong ones (arXiv:2607.13399: where it is
  negative, distillation fails). `logp_correlation`: of both models' log-probabilities of the written tokens
  (arXiv:2605.30833: 0.99 within a family of models, 0.90 across).
  """
  known = without_forks(jnp.asarray(evidence.mask), evidence.forks) & jnp.isfinite(gap)
  average = lambda x, where: jnp.where(where, x, 0.0).sum() / where.sum()
  reward = evidence.rollout.reward
  right, wrong = (rows[:, None] & known for rows in (weights.right(reward), weights.wrong(reward)))
  one, other = (evidence.scores[name].logp for name in ('teacher', 'student'))
  one, other = one - average(one, known), other - average(other, known)
  scale = jnp.sqrt(average(one**2, known) * average(other**2, known))
  return {
    'outcome_gap': average(gap, right) - average(gap, wrong),
    'logp_correlation': average(one * other, known) / scale,
  }


def of_tally(tally: Mapping[str, Any]) -> dict[str, Any]:
  """Means over tokens of what the vocabulary pass saw, and curves along the response."""
  tokens, known, drawn = (float(tally[name]) for name in ('tokens', 'known', 'drawn'))
  along = {
    name: np.maximum(np.asarray(tally[f'curve/{name}'], np.float64), 1)
    for name in ('tokens', 'known')
  }
  counts = ('tokens', 'known', 'drawn', 'gap', 'gap_max', 'curve/tokens', 'curve/known')
  metrics: dict[str, Any] = {'tokens': int(tokens)}
  if known < tokens:
    metrics['judged'] = known / tokens
  if drawn:
    metrics |= {'gap': float(tally['gap']) / drawn, 'gap_max': float(tally['gap_max'])}
  for name, value in tally.items():
    if name in counts:
      continue
    of_teacher = 'teacher/' in name
    if name.startswith('curve/'):
      count = along['known' if of_teacher else 'tokens']
      metrics[name] = (np.asarray(value, np.float64) / count).round(9).tolist()
    elif not of_teacher or known:
      metrics[name] = float(value) / max(known if of_teacher else tokens, 1)
  return metrics
