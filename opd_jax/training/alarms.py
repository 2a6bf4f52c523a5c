"""Floor 5. What stops a run, and what that remembers of earlier steps: numbers that JSON holds."""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

PACE = 0.1  # of the smoothed values: about ten steps


class Alarm(ValueError):
  """A run that must not go on; the message says why."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Bounds:
  """What stops a run; None switches one off.

  Args:
    gap: Stop when the mean |log-prob of the sampler - log-prob of the trainer| of a batch exceeds this, in nats.
    truncation: Stop when the smoothed fraction of responses cut by the budget rises this far above its minimum so far.
    mass: Stop when the student's smoothed mass on the teacher's top k falls below this fraction of its maximum so far.
    unjudged: Stop after this many batches in a row in which no token was judged, because contexts showed nothing.
  """

  gap: float | None = 0.2
  truncation: float | None = 0.6
  mass: float | None = 0.1
  unjudged: int | None = 20


def _why_apart(row: Mapping[str, Any]) -> str:
  if not row.get('staleness'):
    return 'other weights, or other arithmetic'
  return (
    'its weights are older, and updates move far between them, or arithmetic differs. Take a lower rate, a smaller '
    'Stage.staleness, or a wider bound'
  )


def check_alarms(
  row: Mapping[str, Any], memory: Mapping[str, float], bounds: Bounds
) -> dict[str, float]:
  """What the alarms remember after this step; raises where one rings."""
  names = 'loss', 'grad_norm', 'loss_last', 'grad_norm_last', 'grad_norm_max'
  if not all(math.isfinite(row[name]) for name in names if name in row):
    raise Alarm(
      f'loss {row["loss"]} and gradient norm {row["grad_norm"]} at step {row["step"]}: not finite'
    )
  gap = row.get('gap')
  if gap is not None and bounds.gap is not None and gap > bounds.gap:
    raise Alarm(
      f'sampler and trainer are {gap:.3g} nats apart at step {row["step"]}, the bound is {bounds.gap:g} '
      f'(Bounds.gap): {_why_apart(row)}'
    )
  after = dict(memory)
  smooth = lambda name, value: after.get(name, value) + PACE * (value - after.get(name, value))
  if 'truncated' in row:
    after['truncated'] = smooth('truncated', row['truncated'])
    after['lowest'] = min(after.get('lowest', 1.0), after['truncated'])
    if bounds.truncation is not None and after['truncated'] - after['lowest'] > bounds.truncation:
      raise Alarm(
        f'{after["truncated"]:.0%} of the responses run into the budget, {after["lowest"]:.0%} did before: '
        'lengths explode'
      )
  if (mass := row.get('teacher/student_mass')) is not None and bounds.mass is not None:
    after['mass'] = smooth('mass', mass)
    after['highest'] = max(after.get('highest', 0.0), after['mass'])
    if after['mass'] < bounds.mass * after['highest']:
      raise Alarm(
        f"the student leaves {after['mass']:.2%} of its mass on the teacher's top k, {after['highest']:.2%} before: "
        'the support has collapsed'
      )
  after['unjudged'] = after.get('unjudged', 0.0) + 1.0 if row.get('judged') == 0 else 0.0
  if bounds.unjudged is not None and after['unjudged'] >= bounds.unjudged:
    raise Alarm(
      f'no token of the last {after["unjudged"]:.0f} batches was judged (Bounds.unjudged): the contexts of the judges '
      'show nothing. Check the data, or whether the student still has successes to show'
    )
  return after
