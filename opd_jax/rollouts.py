"""Floor 3. Who writes: which rows of a batch come from whom, and how long they may become.

A `RolloutMix` is what a method asks for; `write` does it: it knows the sampler, and nothing of losses or optimisers.
"""

import dataclasses
import math
from collections.abc import Callable, Sequence

import jax
import numpy as np
from jaxtyping import Bool, PRNGKeyArray

from opd_jax.data.prompts import left_padded, unpadded
from opd_jax.data.templates import TaughtTokens
from opd_jax.inference import sampler
from opd_jax.inference.sampler import Model, Sampling
from opd_jax.types import ENDINGS, AnyArray, Prompts, Rollout


@dataclasses.dataclass(frozen=True, kw_only=True)
class Ramp:
  """A number of tokens that moves in a straight line from `begin` to `end` over so many steps, and stays."""

  begin: int
  end: int
  steps: int

  def __post_init__(self):
    if min(self.begin, self.end) < 0 or self.steps < 1:
      raise ValueError(f'Ramp: begin and end must not be negative, steps at least 1; got {self}.')

  def at(self, step: int) -> int:
    share = min(step / self.steps, 1.0)
    return round(self.begin + share * (self.end - self.begin))


@dataclasses.dataclass(frozen=True, kw_only=True)
class RolloutMix:
  """WeightedTerms of the rows; they sum to one.

  Args:
    student: written by the student as it is now.
    teacher: written by the teacher.
    dataset: taken from a data set.
    prefix: tokens that the teacher writes in front of what the student writes; they are read, and do not count.
    stop_after: the student is stopped after so many tokens, however much the budget allows.
  """

  student: float = 0.0
  teacher: float = 0.0
  dataset: float = 0.0
  prefix: Ramp | None = None
  stop_after: Ramp | None = None

  def __post_init__(self):
    shares = {name: getattr(self, name) for name in ('student', 'teacher', 'dataset')}
    if min(shares.values()) < 0 or abs(sum(shares.values()) - 1) > 1e-6:
      raise ValueError(f'rollouts: shares must not be negative and must sum to 1, got {shares}.')

  def deal(
    self, rows: int
  ) -> tuple[Bool[np.ndarray, ' B'], Bool[np.ndarray, ' B'], Bool[np.ndarray, ' B']]:
    """Which rows the student, the teacher and the data set have: spread evenly, the same in every batch."""
    spread = lambda count, share: np.diff(np.floor(np.arange(count + 1) * share + 1e-9)) > 0
    student, teacher = spread(rows, self.student), np.zeros(rows, bool)
    rest = ~student
    teacher[rest] = spread(int(rest.sum()), self.teacher / max(self.teacher + self.dataset, 1e-9))
    return student, teacher, rest & ~teacher


def student(*, prefix: Ramp | None = None, stop_after: Ramp | None = None) -> RolloutMix:
  """Every row by the student: on-policy."""
  return RolloutMix(student=1.0, prefix=prefix, stop_after=stop_after)


def teacher() -> RolloutMix:
  """Every row by the teacher."""
  return RolloutMix(teacher=1.0)


def dataset() -> RolloutMix:
  """Every row from a data set."""
  return RolloutMix(dataset=1.0)


def mixture(*, student: float) -> RolloutMix:
  """A share of the rows by the student, the rest from a data set (GKD's λ)."""
  return RolloutMix(student=student, dataset=1.0 - student)


def given(
  prompts: Prompts, lessons: Sequence[TaughtTokens], *, width: int, version: int = 0
) -> Rollout:
  """A rollout of responses that somebody else wrote; their own log-probabilities are unknown: NaN."""
  rows = len(lessons)
  tokens, mask = np.zeros((rows, width), np.int32), np.zeros((rows, width), bool)
  for row, (response, taught) in enumerate(lessons):
    if len(response) > width:
      raise ValueError(
        f'rollouts: the response of row {int(prompts.row[row])} has {len(response)} tokens, the budget allows {width}. '
        'Raise the budget of the stage, or leave long rows out; a response is never cut silently.'
      )
    tokens[row, : len(response)], mask[row, : len(response)] = response, taught
  unknown = np.full((rows, width), np.nan, np.float32)
  return Rollout(
    prompt=prompts, response=tokens, mask=mask, by_student=np.zeros_like(mask), behaviour_logp=unknown, logp=unknown,
    entropy=None, top_k=None, ended_by=np.full(rows, ENDINGS.index('stop'), np.int32),
    version=np.full(rows, version, np.int32), reward=np.full(rows, np.nan, np.float32),
  )  # fmt: skip


def chosen(prompts: Prompts, rows: AnyArray) -> Prompts:
  return Prompts(*(np.asarray(part)[rows] for part in prompts))


def joined(parts: Sequence[Rollout]) -> Rollout:
  """One rollout of several, in the order of their rows; what only some of them recorded is dropped."""
  parts = (
    [part._replace(entropy=None, top_k=None) for part in parts] if len(parts) > 1 else list(parts)
  )
  order = np.argsort(np.concatenate([part.prompt.row for part in parts]), kind='stable')
  return jax.tree.map(lambda *pieces: np.concatenate(pieces)[order], *parts)


def trimmed(rollout: Rollout) -> Rollout:
  """Without the columns that no row uses, up to a bucket, so that programs stay few."""
  longest = int(lengths(rollout).max(initial=1))
  width = sampler.bucket(longest, least=8, most=rollout.response.shape[1])
  cut = lambda x: x[:, :width] if x is not None and np.ndim(x) >= 2 else x
  prompt = rollout.prompt
  least = sampler.bucket(int(prompt.length.max(initial=1)), least=8, most=prompt.tokens.shape[1])
  prompt = prompt._replace(tokens=prompt.tokens[:, prompt.tokens.shape[1] - least :])
  return jax.tree.map(cut, rollout._replace(prompt=None))._replace(prompt=prompt)


def lengths(rollout: Rollout) -> np.ndarray:
  """Columns of each response up to its last token that counts."""
  mask = np.asarray(rollout.mask)
  return np.where(mask.any(axis=1), mask.shape[1] - np.argmax(mask[:, ::-1], axis=1), 0)


def write(
  writers: RolloutMix,
  prompts: Prompts,
  demonstrations: Sequence[TaughtTokens | None],
  key: PRNGKeyArray,
  *,
  student: Callable[[], Model],
  teacher: Callable[[], Model],
  sampling: Sampling,
  step: int = 0,
  version: int = 0,
) -> Rollout:
  """One response for every prompt, by whoever has the row.

  Args:
    writers: who has which share.
    prompts: left-padded.
    demonstrations: of the data set, one a row; None where there is none.
    key: of the run: a row's number fixes its random stream.
    student, teacher: hand out a model to sample from, and are only asked where one writes.
    sampling: rules and budget of both.
    step: of the stage, for what moves with it.
    version: stamp of the student's weights.
  """
  parts = []
  by_student, by_teacher, by_data = writers.deal(len(prompts.row))
  if by_student.any():
    parts.append(
      _by_student(
        writers, chosen(prompts, by_student), key, student, teacher, sampling, step, version
      )
    )
  if by_teacher.any():
    rollout = sampler.generate(
      teacher(), chosen(prompts, by_teacher), key, sampling=sampling, version=version
    )
    parts.append(rollout._replace(by_student=np.zeros_like(rollout.mask)))
  if by_data.any():
    mine = [
      demonstration for demonstration, here in zip(demonstrations, by_data, strict=True) if here
    ]
    if any(demonstration is None for demonstration in mine):
      raise ValueError(
        'rollouts: the method learns from responses of the data set, and some problems have none.'
      )
    known = [demonstration for demonstration in mine if demonstration is not None]
    parts.append(given(chosen(prompts, by_data), known, width=sampling.budget, version=version))
  return joined(parts)


def _by_student(
  writers: RolloutMix,
  prompts: Prompts,
  key,
  student,
  teacher,
  sampling: Sampling,
  step: int,
  version: int,
):
  most = (
    sampling.budget
    if writers.stop_after is None
    else min(writers.stop_after.at(step), sampling.budget)
  )
  ahead = 0 if writers.prefix is None else min(writers.prefix.at(step), most)
  if not ahead:
    budgets = [most] * len(prompts.row)
    return sampler.generate(
      student(), prompts, key, sampling=sampling, budgets=budgets, version=version
    )
  budgets = [ahead] * len(prompts.row)
  first = jax.random.fold_in(key, 1)
  prefix = sampler.generate(
    teacher(), prompts, first, sampling=sampling, budgets=budgets, version=version
  )
  front = [row[mask].tolist() for row, mask in zip(prefix.response, prefix.mask, strict=True)]
  longer = [a + b for a, b in zip(unpadded(prompts), front, strict=True)]
  asked = left_padded(longer, width=max(map(len, longer)), pad=0)._replace(
    row=prompts.row, group=prompts.group
  )
  over = np.asarray(prefix.ended_by) == ENDINGS.index('stop')
  budgets = np.where(over, 0, most - ahead).tolist()
  rest = sampler.generate(
    student(), asked, key, sampling=sampling, budgets=budgets, version=version
  )
  return _after(prefix, rest, over)


def _after(prefix: Rollout, rest: Rollout, over: np.ndarray) -> Rollout:
  """What was written behind a prefix, as one response each; the prefix does not count."""
  size = prefix.response.shape[1]
  n = prefix.mask.sum(axis=1)[:, None]
  at = np.arange(size)[None] - n
  take = lambda x: np.take_along_axis(x, np.clip(at, 0, size - 1), axis=1)
  first = at < 0
  merge = lambda a, b: np.where(first, a, take(b))
  mask = ~first & take(rest.mask)
  return rest._replace(
    prompt=prefix.prompt,
    response=merge(prefix.response, rest.response),
    mask=mask,
    by_student=mask,
    behaviour_logp=merge(prefix.behaviour_logp, rest.behaviour_logp),
    logp=merge(prefix.logp, rest.logp),
    entropy=None,
    top_k=None,
    ended_by=np.where(over, prefix.ended_by, rest.ended_by),
  )


def rows_of(problems: int, samples: int) -> np.ndarray:
  """The problem that each row of a batch answers."""
  return np.repeat(np.arange(problems), samples)


def microbatches_of(rollout: Rollout, count: int, *, devices: int) -> list[np.ndarray]:
  """Rows of like length together: each microbatch is then as wide as its own longest row."""
  rows = len(rollout.response)
  size = math.ceil(rows / count / devices) * devices
  if rows % size:
    raise ValueError(
      f'rollouts: {rows} rows cannot be dealt to {count} microbatches on {devices} devices: a microbatch would have '
      f'{size} rows. Choose numbers that divide.'
    )
  order = np.argsort(-lengths(rollout), kind='stable')
  return [order[begin : begin + size] for begin in range(0, rows, size)]
