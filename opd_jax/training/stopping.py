"""Floor 5. Rules that end a stage, or the run, in good order when a metric stays beyond a bound.

An alarm (`alarms.Bounds`) takes a run for broken: it raises, and no later checkpoint is written. A rule here belongs to
the experiment: everything is saved and evaluated as at the end of a stage. What it remembers is in `RunPosition`.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from opd_jax.static import static
from opd_jax.training.readings import reading_of

Memory = Mapping[str, Mapping[str, Any]]
LOW_ENTROPY = (
  'the student repeats itself. A lower RATE, a forward KL or a JSD in place of a reverse one, rows or a prefix by the '
  'teacher (experiment.Stage.rollout), or a teacher that is renewed less often'
)
LONG = (
  'responses grow until they are cut. A lower RATE, a shorter BUDGET or rollouts.student.stop_after, a verifier that '
  'gives cut responses nothing, or a teacher that ends its own responses'
)
NO_REWARD = (
  'the student no longer finds answers. A warm-up with SFT, easier problems first (mixture.mixture.weights as ramps), '
  'more SAMPLES, or a longer BUDGET where responses are cut'
)
HELP = (  # the last part of a metric's name, the side on which it is a collapse, what usually helps
  (('entropy',), 'below', LOW_ENTROPY),
  (('length', 'length_max', 'truncated', 'looping', 'repeats'), 'above', LONG),
  (('reward', 'avg@', 'pass@'), 'below', NO_REWARD),
)


@static
class StopWhen:
  """Ends a stage when a metric stays above or below a bound. One of `above` and `below` is given.

  Args:
    metric: as metrics.jsonl names it: 'entropy', 'length', 'reward', 'eval/sums/avg@1'.
    above, below: the bound.
    readings: ends after so many readings in a row beyond it: steps, or evaluations for a metric of one.
    after: readings at the beginning of the stage that do not count.
    ends: 'run' stops the run with exit status 3; 'stage' goes on with the next stage.
  """

  metric: str
  above: float | int | None = None
  below: float | int | None = None
  readings: int = 5
  after: int = 0
  ends: Literal['run', 'stage'] = 'run'

  def __post_init__(self):
    if (self.above is None) == (self.below is None):
      raise ValueError(f'StopWhen {self.metric}: give one of above and below, got {self}.')
    if not math.isfinite(self.bound) or self.readings < 1 or self.after < 0:
      raise ValueError(
        f'StopWhen {self.metric}: its bound must be finite, readings at least 1 and after not negative, got {self}.'
      )
    if self.ends not in ('run', 'stage'):
      raise ValueError(f"StopWhen {self.metric}: ends is 'run' or 'stage', got {self.ends!r}.")
    if self.metric.startswith('time/'):
      raise ValueError(
        f'StopWhen: {self.metric} differs from machine to machine, and so would the run. Take another metric.'
      )

  @property
  def name(self) -> str:
    """Under which it is remembered."""
    return f'{self.metric} {self.side} {self.bound:g}'

  @property
  def side(self) -> str:
    return 'below' if self.above is None else 'above'

  @property
  def bound(self) -> float | int:
    bound = self.below if self.above is None else self.above
    assert bound is not None
    return bound

  def is_beyond(self, value: float) -> bool:
    return value < self.bound if self.above is None else value > self.bound


def after_row(
  rules: Sequence[StopWhen], memory: Memory | None, row: Mapping[str, Any]
) -> dict[str, dict[str, Any]]:
  """What the rules remember after a row of metrics: readings so far, how many in a row were beyond, the last one."""
  known = {name: dict(each) for name, each in (memory or {}).items()}
  for rule in rules:
    value = reading_of(f'StopWhen {rule.name}', rule.metric, row, was_there=rule.name in known)
    if value is None:
      continue
    before = known.get(rule.name, {'readings': 0, 'beyond': 0})
    counts = rule.is_beyond(value) and before['readings'] >= rule.after
    known[rule.name] = {
      'readings': before['readings'] + 1,
      'beyond': before['beyond'] + 1 if counts else 0,
      'last': value,
    }
  return known


def met(rules: Sequence[StopWhen], memory: Memory | None) -> StopWhen | None:
  """The first rule that ends the stage now."""
  remembered = memory or {}
  return next(
    (rule for rule in rules if remembered.get(rule.name, {}).get('beyond', 0) >= rule.readings),
    None,
  )


def explained(rule: StopWhen, memory: Memory | None, *, stage: str, step: int) -> str:
  """What happened, and what usually helps."""
  last = (memory or {})[rule.name]['last']
  helps = next(
    (
      f'. What it usually means: {text}'
      for names, side, text in HELP
      if side == rule.side and rule.metric.split('/')[-1].startswith(names)
    ),
    '',
  )
  return (
    f'stage {stage} ended at step {step}: {rule.metric} was {rule.side} {rule.bound:g} in {rule.readings} readings in '
    f'a row, at last {last:.4g}{helps}'
  )
