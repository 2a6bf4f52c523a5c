"""Floor 5. Optimisers, as optax knows them, with the schedule and the clip that every run has."""

import functools
import math
from typing import Any

import optax


def warm_then(rate: float, *, warmup: int, steps: int | None, end: float) -> optax.Schedule:
  """From zero to `rate` over `warmup` steps, then to `end · rate` along a cosine, or constant without `steps`."""
  if steps is None:
    return optax.join_schedules(
      [optax.linear_schedule(0.0, rate, max(warmup, 1)), optax.constant_schedule(rate)], [warmup]
    )
  if steps <= warmup:
    raise ValueError(
      f'optimisers: a warm-up of {warmup} steps leaves nothing of a schedule of {steps}.'
    )
  return optax.warmup_cosine_decay_schedule(
    0.0 if warmup else rate, rate, warmup, steps, end_value=end * rate
  )


TINY, HUGE = 1e-30, 1e30  # far from where float32 ends


def _is_number(value: Any) -> bool:
  return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _check(**values: Any) -> None:
  """Refuses what is no number above 0; a clip may be None."""
  for name, value in values.items():
    if not (_is_number(value) and value > 0) and not (name == 'clip' and value is None):
      raise ValueError(f'optimisers: {name} must be a number above 0, got {value!r}.')
    if value is not None and not TINY <= value <= HUGE:
      raise ValueError(f'optimisers: {name} must lie between {TINY:g} and {HUGE:g}, got {value!r}.')


@functools.cache
def adamw(
  *,
  rate: float = 1e-5,
  warmup: int = 0,
  steps: int | None = None,
  end: float = 0.0,
  clip: float | None = 1.0,
  beta1: float = 0.9,
  beta2: float = 0.999,
  epsilon: float = 1e-8,
  weight_decay: float = 0.0,
) -> optax.GradientTransformation:
  """AdamW behind a clip of the global norm.

  Args:
    rate: learning rate at its peak.
    warmup: steps from zero to the peak.
    steps: length of the cosine; None keeps the rate.
    end: what the cosine ends at, as a share of the peak.
    clip: most the global norm of a gradient may be; None lets it.
    beta1, beta2, epsilon, weight_decay: of AdamW.
  """
  _check(rate=rate, clip=clip, epsilon=epsilon)
  for name, beta in (('beta1', beta1), ('beta2', beta2)):
    if not _is_number(beta) or not 0 <= beta < 1:
      raise ValueError(f'optimisers: {name} must lie in [0, 1), got {beta!r}.')
  if not isinstance(warmup, int) or warmup < 0 or not _is_number(weight_decay) or weight_decay < 0:
    raise ValueError(
      f'optimisers: warmup is a whole number of steps and weight_decay a number, both from 0 on; got {warmup!r} and '
      f'{weight_decay!r}.'
    )
  schedule = warm_then(rate, warmup=warmup, steps=steps, end=end)
  moves = optax.adamw(schedule, b1=beta1, b2=beta2, eps=epsilon, weight_decay=weight_decay)
  return moves if clip is None else optax.chain(optax.clip_by_global_norm(clip), moves)


@functools.cache
def sgd(
  *, rate: float = 1e-2, momentum: float | None = None, clip: float | None = None
) -> optax.GradientTransformation:
  """Plain gradient descent, for studies of a gradient itself."""
  _check(rate=rate, clip=clip)
  moves = optax.sgd(rate, momentum=momentum)
  return moves if clip is None else optax.chain(optax.clip_by_global_norm(clip), moves)
