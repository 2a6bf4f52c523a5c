"""Floor 5. What a run tells: a line of JSON a step, TensorBoard beside it, samples of text, and alarms.

`metrics.jsonl` holds one object a step. Keys under `time/` are seconds of the machine; all others are the same for the
same configuration on the same kind of machine, however often the run was interrupted.
"""

import dataclasses
import hashlib
import importlib
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from opd_jax import rollouts
from opd_jax.losses.terms import OnSupport
from opd_jax.method import Evidence, WeightedTerms
from opd_jax.types import ENDINGS, Rollout

NOT_THE_RUN = 'time/'


class Alarm(ValueError):
  """A run that must not go on; the message says why."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Bounds:
  """What stops a run; None switches one off.

  Args:
    gap: mean |log-prob of the sampler - log-prob of the trainer| of a batch, in nats.
    truncation: how far the share of responses cut by the budget may rise above its least, both over about ten steps.
    mass: to what share of the most that the student left on the teacher's top k its mass there may fall, likewise.
  """

  gap: float | None = 0.2
  truncation: float | None = 0.6
  mass: float | None = 0.1


def check_alarms(
  row: Mapping[str, Any], memory: Mapping[str, float], bounds: Bounds
) -> dict[str, float]:
  """What the alarms remember after this step; raises where one rings."""
  last = {
    name: row.get(f'{name}_last', row[name]) for name in ('loss', 'grad_norm')
  }  # of several updates
  if not all(math.isfinite(each[name]) for each in (row, last) for name in last):
    raise Alarm(
      f'loss {row["loss"]} and gradient norm {row["grad_norm"]} at step {row["step"]}: not finite'
    )
  after = dict(memory)
  gap = row.get('gap')
  if gap is not None and bounds.gap is not None and gap > bounds.gap:
    raise Alarm(
      f'sampler and trainer are {gap:.3g} nats apart at step {row["step"]}, the bound is {bounds.gap:g} '
      '(Bounds.gap): other weights, or other arithmetic'
    )
  smooth = lambda name, value: after.get(name, value) + 0.1 * (value - after.get(name, value))
  if 'truncated' in row:
    after['truncated'] = smooth('truncated', row['truncated'])
    after['least'] = min(after.get('least', 1.0), after['truncated'])
    if bounds.truncation is not None and after['truncated'] - after['least'] > bounds.truncation:
      raise Alarm(
        f'{after["truncated"]:.0%} of the responses run into the budget, {after["least"]:.0%} did before: '
        'lengths explode'
      )
  if (mass := row.get('teacher/student_mass')) is not None and bounds.mass is not None:
    after['mass'] = smooth('mass', mass)
    after['most'] = max(after.get('most', 0.0), after['mass'])
    if after['mass'] < bounds.mass * after['most']:
      raise Alarm(
        f"the student leaves {after['mass']:.2%} of its mass on the teacher's top k, {after['most']:.2%} before: the "
        'support has collapsed'
      )
  return after


class Recorder:
  """The files of a run that a person or a plot reads."""

  def __init__(self, workdir: Path, *, begin: int, is_writer: bool, wandb: str | None = None):
    self.folder, self.is_writer = workdir, is_writer
    self._board: Any = None
    self._wandb: Any = None
    if not is_writer:
      return
    for name in ('metrics.jsonl', 'samples.jsonl'):
      _rewind(workdir / name, begin)
    from tensorboardX import SummaryWriter

    self._board = SummaryWriter(str(workdir / 'tensorboard'), purge_step=begin + 1)
    if wandb is not None:
      try:
        service: Any = importlib.import_module('wandb')
      except ImportError as error:
        raise ValueError(
          'metrics: W&B is asked for and not installed; pip install wandb, or leave it out.'
        ) from error
      self._wandb = service.init(
        project=wandb, dir=str(workdir), resume='allow', id=_name_of(workdir)
      )

  def row(self, row: Mapping[str, Any]) -> None:
    if not self.is_writer:
      return
    _append(self.folder / 'metrics.jsonl', [row])
    flat = {name: value for name, value in row.items() if isinstance(value, int | float)}
    if self._board is not None:
      for name, value in flat.items():
        if math.isfinite(value):
          self._board.add_scalar(name, value, row['step'])
    if self._wandb is not None:
      self._wandb.log(flat, step=row['step'])

  def samples(self, rows: Sequence[Mapping[str, Any]]) -> None:
    if self.is_writer:
      _append(self.folder / 'samples.jsonl', rows)

  def close(self) -> None:
    if self._board is not None:
      self._board.close()
    if self._wandb is not None:
      self._wandb.finish()


def _name_of(workdir: Path) -> str:
  """The same for the same folder, another for another of the same last name."""
  return f'{workdir.name}-{hashlib.sha256(str(workdir.absolute()).encode()).hexdigest()[:8]}'


def _append(file: Path, rows: Sequence[Mapping[str, Any]]) -> None:
  with open(file, 'a') as stream:
    stream.writelines(json.dumps(row) + '\n' for row in rows)


def _rewind(file: Path, step: int) -> None:
  """Drops what was written after the checkpoint that a run resumes from, and a line that a kill cut short."""
  if not file.exists():
    return
  kept = [line for line in file.read_text().splitlines() if _step_of(line) <= step]
  part = file.with_suffix('.part')
  part.write_text(''.join(line + '\n' for line in kept))
  part.rename(file)


def _step_of(line: str) -> float:
  try:
    return float(json.loads(line)['step'])
  except (ValueError, KeyError):
    return math.inf


def read(workdir: str | Path) -> list[dict[str, Any]]:
  """The rows of a run's metrics."""
  return [json.loads(line) for line in (Path(workdir) / 'metrics.jsonl').read_text().splitlines()]


def of_rollout(rollout: Rollout, *, step: int) -> dict[str, float]:
  """What can be said of a batch without any model."""
  length = rollouts.lengths(rollout).astype(float)
  ended = np.asarray(rollout.ended_by)
  share = lambda name: float((ended == ENDINGS.index(name)).mean())
  found = {
    'length': float(length.mean()),
    'length_most': float(length.max()),
    'truncated': share('budget') + share('context'),
    'looping': share('repetition'),
    'repeats': float(
      np.mean([_repeats(row[: int(n)]) for row, n in zip(rollout.response, length, strict=True)])
    ),
    'by_student': float(
      np.asarray(rollout.by_student).sum() / max(np.asarray(rollout.mask).sum(), 1)
    ),
    'staleness': float(np.mean(step - np.asarray(rollout.version))),
  }
  if np.isfinite(rollout.reward).any():
    found['reward'] = float(np.nanmean(rollout.reward))
  return found


def _repeats(tokens: np.ndarray) -> float:
  """WeightedTerm of the 3-grams that occurred before."""
  grams = list(zip(tokens, tokens[1:], tokens[2:], strict=False))
  return 1 - len(set(grams)) / len(grams) if grams else 0.0


@jax.jit
def of_evidence(evidence: Evidence, weighted_terms: WeightedTerms) -> dict[str, Array]:
  """What can be said of a weighed batch: the gap to the teacher, and what the method does with it."""
  mask = jnp.asarray(evidence.rollout.mask)
  count = jnp.maximum(mask.sum(), 1)
  mean = lambda x: jnp.where(mask, x, 0.0).sum() / count
  found = {}
  if evidence.teacher is not None:
    gap = jnp.where(
      mask, evidence.teacher.logp - evidence.student.logp, jnp.nan
    )  # NaN where nobody scored the student
    found = {'log_ratio': jnp.nanmean(gap), 'log_ratio_zero': mean(gap == 0)}
    for level in (0.05, 0.5, 0.95):
      found[f'log_ratio_{level:g}'] = jnp.nanquantile(gap, level)
  guided = [
    weighted.coefficient != 0 for weighted in weighted_terms if isinstance(weighted.term, OnSupport)
  ]
  if guided and len(guided) < len(weighted_terms):  # a method that chooses between them
    found['intervened'] = mean(jnp.stack(guided).any(axis=0))
  idle = jnp.stack([weighted.coefficient == 0 for weighted in weighted_terms]).all(axis=0)
  return found | {'idle': mean(idle)}


def of_tally(tally: Mapping[str, Any]) -> dict[str, Any]:
  """Means over tokens of what the vocabulary pass saw, and curves along the response."""
  tokens, drawn = float(tally['tokens']), float(tally['drawn'])
  along = np.asarray(tally['curve/tokens'], np.float64)
  apart = ('tokens', 'drawn', 'gap', 'gap_most', 'curve/tokens')
  found: dict[str, Any] = {'tokens': int(tokens)}
  if drawn:
    found |= {'gap': float(tally['gap']) / drawn, 'gap_most': float(tally['gap_most'])}
  for name, value in tally.items():
    if name in apart:
      continue
    if name.startswith('curve/'):
      found[name] = (np.asarray(value, np.float64) / np.maximum(along, 1)).round(9).tolist()
    else:
      found[name] = float(value) / max(tokens, 1)
  return found
