"""Floor 3. Who writes what: a batch of rollouts by the writers of a `RolloutMix`. It knows the sampler, but no loss."""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import Bool, PRNGKeyArray

from opd_jax.data.prompts import left_padded, unpadded
from opd_jax.data.templates import TaughtTokens
from opd_jax.inference import sampler, speculative
from opd_jax.inference.decoding import Forbid
from opd_jax.inference.sampler import Model, Sampling
from opd_jax.rollouts import distant
from opd_jax.rollouts.distant import DistantWriter
from opd_jax.rollouts.mix import RolloutMix, whole
from opd_jax.types import DATA, ENDINGS, NOBODY, STUDENT, TEACHER, AnyArray, Prompts, Rollout

PREFIX = 2**31 - 2  # folded into the key of a teacher's prefix: no row has this number


class Writer(NamedTuple):
  """A model that writes, and the prompts that it reads: of the same rows and groups for every writer."""

  model: Model
  prompts: Prompts


def given(
  prompts: Prompts, texts: Sequence[TaughtTokens], *, width: int, version: int = 0
) -> Rollout:
  """A rollout of responses that somebody else wrote; their own log-probabilities are unknown: NaN."""
  rows = len(texts)
  tokens, mask = np.zeros((rows, width), np.int32), np.zeros((rows, width), bool)
  writer = np.full((rows, width), NOBODY, np.int32)
  for row, (response, taught) in enumerate(texts):
    if len(response) > width:
      raise ValueError(
        f'rollouts: the response of row {int(prompts.row[row])} has {len(response)} tokens, the budget allows '
        f'{width}. Raise the budget of the stage, or leave long rows out; a response is never cut silently.'
      )
    tokens[row, : len(response)], mask[row, : len(response)] = response, taught
    writer[row, : len(response)] = DATA
  unknown = np.full((rows, width), np.nan, np.float32)
  return Rollout(
    prompt=prompts,
    response=tokens,
    mask=mask,
    writer=writer,
    behaviour_logp=unknown,
    logp=unknown,
    entropy=None,
    top_k=None,
    ended_by=np.full(rows, ENDINGS.index('stop'), np.int32),
    version=np.full(rows, version, np.int32),
    reward=np.full(rows, np.nan, np.float32),
  )


def chosen(prompts: Prompts, rows: AnyArray) -> Prompts:
  """Some rows of the prompts."""
  return Prompts(*(np.asarray(part)[rows] for part in prompts))


def joined(parts: Sequence[Rollout]) -> Rollout:
  """One rollout of several, in the order of their rows; what only some of them recorded is dropped."""
  several = len(parts) > 1
  parts = [part._replace(entropy=None, top_k=None) if several else part for part in parts]
  order = np.argsort(np.concatenate([part.prompt.row for part in parts]), kind='stable')
  return jax.tree.map(lambda *pieces: np.concatenate(pieces)[order], *parts)


def write(
  mix: RolloutMix,
  prompts: Prompts,
  demonstrations: Sequence[TaughtTokens | None],
  key: PRNGKeyArray,
  *,
  student: Callable[[], Model],
  teacher: Callable[[], Writer | DistantWriter],
  sampling: Sampling,
  columns: int,
  numbers: tuple[np.float32, ...] | None = None,
  version: int = 0,
) -> Rollout:
  """One response for every prompt, by whoever has the row.

  Args:
    mix: who has which fraction; settled: its numbers are those of the step.
    prompts: what the student reads, left-padded.
    demonstrations: of the data set, one a row; None where there is none.
    key: of the run: a row's number fixes its random stream.
    student, teacher: hand out a model to sample from, and are only called where it writes.
    sampling: rules and budget of both.
    columns: entries of the student's vocabulary.
    numbers: where the numbers of decoding rules stand that move.
    version: stamp of the student's weights.
  """
  parts = []
  student, teacher = functools.cache(student), functools.cache(teacher)  # each is made once a batch
  by_student, by_teacher, by_data = mix.deal(len(prompts.row))
  settings = _Settings(mix, key, sampling, numbers, version, columns)
  if by_student.any():
    parts.append(_by_student(settings, chosen(prompts, by_student), by_student, student, teacher))
  if by_teacher.any():
    parts.append(_teachers_rows(settings, teacher(), student, prompts, by_teacher))
  if by_data.any():
    wanted = [each for each, here in zip(demonstrations, by_data, strict=True) if here]
    texts = [each for each in wanted if each is not None]
    if len(texts) < len(wanted):
      raise ValueError(
        'rollouts: the method learns from responses of the data set, and some problems have none.'
      )
    parts.append(given(chosen(prompts, by_data), texts, width=sampling.budget, version=version))
  return joined(parts)


class _Settings(NamedTuple):
  """What every writer of a batch shares."""

  mix: RolloutMix
  key: PRNGKeyArray
  sampling: Sampling
  numbers: tuple[np.float32, ...] | None
  version: int
  columns: int  # of the student's vocabulary


def within(sampling: Sampling, model: Model, columns: int) -> Sampling:
  """Sampling of a model that writes no ids beyond the `columns` of the student's vocabulary."""
  padding = tuple(range(columns, model.config.vocab_size))
  if not padding:
    return sampling
  rules = (Forbid(padding), *sampling.decoding.rules)
  return dataclasses.replace(sampling, decoding=dataclasses.replace(sampling.decoding, rules=rules))


def _teachers_rows(
  settings: _Settings,
  writer: Writer | DistantWriter,
  student: Callable[[], Model],
  prompts: Prompts,
  rows: Bool[np.ndarray, ' B'],
) -> Rollout:
  """Rows that the teacher has for itself, behind what it reads."""
  own = chosen(prompts, rows)
  if isinstance(writer, DistantWriter):
    budget, version = settings.sampling.budget, settings.version
    return distant.rollout_of(writer, rows, own, budget=budget, version=version)
  shown, draft = chosen(writer.prompts, rows), student() if settings.mix.proposals else None
  rollout = _by_teacher(settings, writer.model, shown, settings.key, None, draft=draft)
  return rollout._replace(prompt=own)


def _by_teacher(
  settings: _Settings, model: Model, prompts: Prompts, key, budgets, draft: Model | None = None
) -> Rollout:
  """What the teacher writes, perhaps from proposals of a draft."""
  known = {
    'sampling': within(settings.sampling, model, settings.columns),
    'budgets': budgets,
    'version': settings.version,
    'numbers': settings.numbers,
  }
  if draft is None:
    rollout = sampler.generate(model, prompts, key, **known)
  else:
    count = settings.mix.proposals
    rollout = speculative.generate(model, draft, prompts, key, proposals=count, **known).rollout
  return rollout._replace(writer=np.where(rollout.writer == STUDENT, TEACHER, rollout.writer))


def _by_student(
  settings: _Settings,
  prompts: Prompts,
  rows: Bool[np.ndarray, ' B'],
  student: Callable[[], Model],
  teacher: Callable[[], Any],
) -> Rollout:
  """What the student writes, perhaps behind a prefix of the teacher."""
  mix, key, sampling, numbers, version, _ = settings
  longest = sampling.budget
  if mix.stop_after is not None:
    longest = min(whole(mix.stop_after), longest)
  ahead = 0 if mix.prefix is None else min(whole(mix.prefix), longest)
  others = () if mix.beside is None else (_beside(student(), teacher(), prompts, rows),)
  write = lambda shown, budgets: sampler.generate(
    student(),
    shown,
    key,
    sampling=sampling,
    others=others,
    budgets=budgets,
    version=version,
    numbers=numbers,
  )
  if not ahead:
    return write(prompts, [longest] * len(prompts.row))
  writer = teacher()
  shown = chosen(writer.prompts, rows)
  apart = jax.random.fold_in(key, PREFIX)
  prefix = _by_teacher(settings, writer.model, shown, apart, [ahead] * len(prompts.row))
  front = [row[:n].tolist() for row, n in zip(prefix.response, prefix.lengths, strict=True)]
  longer = [before + text for before, text in zip(unpadded(prompts), front, strict=True)]
  extended = left_padded(longer, width=max(map(len, longer)), pad=0)
  extended = extended._replace(row=prompts.row, group=prompts.group)
  over = np.asarray(prefix.ended_by) == ENDINGS.index('stop')
  rest = write(extended, np.where(over, 0, longest - ahead).tolist())
  return behind(prefix._replace(prompt=prompts), rest, over, mix.prefix_counts)


def _beside(student: Model, teacher: Writer, prompts: Prompts, rows) -> Model:
  """The teacher, where rules may read it at the student's own positions."""
  if teacher.model.layout.mesh != student.layout.mesh:
    raise ValueError(
      "rollouts: beside='teacher' reads both models in one program, and the teacher lies on another mesh. Give the "
      'judge the layout that the student samples on.'
    )
  if unpadded(chosen(teacher.prompts, rows)) != unpadded(prompts):
    raise ValueError(
      "rollouts: beside='teacher' reads both models at the same positions, and the teacher is shown another prompt. "
      'Leave its template and context as the student has them.'
    )
  return teacher.model


def behind(prefix: Rollout, rest: Rollout, over: np.ndarray, counts: bool) -> Rollout:
  """What was written behind a prefix, as one response each, and whether the prefix counts."""
  size = prefix.response.shape[1]
  at = np.arange(size)[None] - prefix.lengths[:, None]
  take = lambda x: np.take_along_axis(x, np.clip(at, 0, size - 1), axis=1)
  first = at < 0
  merge = lambda front, back: np.where(first, front, take(back))
  return rest._replace(
    prompt=prefix.prompt,
    response=merge(prefix.response, rest.response),
    mask=merge(prefix.mask & counts, rest.mask),
    writer=merge(prefix.writer, rest.writer),
    behaviour_logp=merge(prefix.behaviour_logp, rest.behaviour_logp),
    logp=merge(prefix.logp, rest.logp),
    entropy=None,
    top_k=None,
    ended_by=np.where(over, prefix.ended_by, rest.ended_by),
  )
