"""Floor 4. What the responses of an evaluation come to. Training, `opd evaluate`, studies and the report count alike.

A response counts 1 where its outcome is correct and 0 otherwise, whatever its reward is.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float

from opd_jax.evaluation.pass_at_k import pass_at_k
from opd_jax.types import AnyArray

Row = Mapping[str, Any]  # a line of outcomes.jsonl
OF_ALL = 'length', 'truncated'
OF_VERIFIED = 'reward', 'unparsed', 'timed_out', 'disagreed'


def credit(row: Row) -> float | None:
  """What a response counts in avg@k; None where no verifier has looked at it.

  >>> credit({'outcome': 'correct', 'reward': 0.5}), credit({'outcome': 'unparsed'}), credit({'outcome': ''})
  (1.0, 0.0, None)
  """
  outcome = row.get('outcome', '')
  return float(outcome == 'correct') if outcome else None


def disagreed(row: Row) -> bool:
  """Whether one of two verifiers takes the response for correct and the other does not; time-outs say nothing."""
  both = row.get('outcome', ''), row.get('second', '')
  return (both[0] == 'correct') != (both[1] == 'correct') and not {'', 'timed out'} & {*both}


def counts_of(samples: int) -> tuple[int, ...]:
  """The k of pass@k where none are named: 4, 8, 16, … and all samples. pass@1 is avg@k.

  >>> counts_of(1), counts_of(3), counts_of(20)
  ((), (3,), (4, 8, 16, 20))
  """
  powers = (2**n for n in range(2, samples.bit_length()))
  return tuple(sorted({*powers, samples} - {1}))


def by_problem(
  rows: Sequence[Row], *, samples: int, ks: Sequence[int]
) -> dict[str, Float[AnyArray, ' problems']]:
  """avg@samples of each problem that somebody looked at, and pass@k where every response was looked at.

  Args:
    rows: problem after problem, `samples` of each.
    samples: of a problem.
    ks: of pass@k.
  """
  credits = [math.nan if (count := credit(row)) is None else count for row in rows]
  table = np.array(credits, np.float64).reshape(-1, samples)
  known = np.isfinite(table)
  seen = known.any(axis=1)
  if not seen.any():
    return {}
  found = {f'avg@{samples}': np.nanmean(table[seen], axis=1)}
  if known.all():
    right = table.sum(axis=1).astype(np.int64)
    found |= {f'pass@{k}': pass_at_k(samples, right, k) for k in ks}
  return found


def shares(rows: Sequence[Row]) -> dict[str, float]:
  """Mean length, and shares of all responses; the mean reward of those that have one."""
  of = lambda key, *values: sum(row[key] in values for row in rows) / len(rows)
  found = {
    'length': sum(row['length'] for row in rows) / len(rows),
    'truncated': of('ended_by', 'budget', 'context'),
  }
  rewards = [row['reward'] for row in rows if row['reward'] is not None]
  if rewards := [reward for reward in rewards if math.isfinite(reward)]:
    found['reward'] = float(np.mean(rewards))
  if any(row['outcome'] for row in rows):
    found |= {'unparsed': of('outcome', 'unparsed'), 'timed_out': of('outcome', 'timed out')}
  if any(row.get('second') for row in rows):
    found['disagreed'] = sum(map(disagreed, rows)) / len(rows)
  return found
