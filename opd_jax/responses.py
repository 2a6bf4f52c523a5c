"""Floor 3. A batch of responses on the host: from problems to prompts, from tokens to texts and verdicts."""

import dataclasses
import functools
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import jax
import numpy as np

from opd_jax.data.problems import THREADS, Problem, Task, Verdict, is_thread_safe, verdict_of
from opd_jax.data.prompts import left_padded
from opd_jax.data.templates import Template
from opd_jax.data.tokenizers import Tokenizer
from opd_jax.inference.buckets import bucket
from opd_jax.inference.decoding import Forbid
from opd_jax.inference.sampler import Sampling
from opd_jax.processes import dealt
from opd_jax.types import Prompts, Rollout


class PromptBatch(NamedTuple):
  """The rows of a batch before anybody has answered."""

  problems: list[Problem]
  prompts: Prompts


class Responses(NamedTuple):
  """A batch of responses, with their texts and what a verifier said of them."""

  problems: list[Problem]
  rollout: Rollout
  texts: list[str]
  feedback: list[str]
  outcomes: list[str]  # of problems.OUTCOMES; '' where nobody looked
  second: list[str]  # what a second verifier says; '' where there is none


def complete_sampling(sampling: Sampling, tokenizer: Tokenizer, vocabulary: int) -> Sampling:
  """Sampling with the tokenizer's stop tokens, and without the rows of the table that stand for nothing."""
  rules = sampling.decoding
  if not rules.stop_tokens:
    ends = sorted(tokenizer.stop_tokens | {tokenizer.turn_end})
    rules = dataclasses.replace(rules, stop_tokens=tuple(ends))
  if padding := tuple(range(len(tokenizer.strings()), vocabulary)):
    rules = dataclasses.replace(rules, rules=(Forbid(padding), *rules.rules))
  return dataclasses.replace(sampling, decoding=rules)


def prompt_batch(
  problems: Sequence[Problem],
  samples: int,
  template: Template,
  tokenizer: Tokenizer,
  *,
  first_row: int,
) -> PromptBatch:
  """Every problem so many times, as left-padded prompts whose row numbers go on from `first_row`."""
  rows = np.repeat(np.arange(len(problems)), samples).tolist()
  render = lambda problem: template.render(tokenizer, problem.messages)
  tokens = dealt(lambda numbers: [render(problems[each]) for each in numbers], len(problems))
  repeated = [tokens[row] for row in rows]
  width = bucket(max(map(len, repeated)), minimum=8, maximum=1 << 30)
  prompts = left_padded(repeated, width=width, pad=tokenizer.pad, groups=rows)
  numbers = np.arange(len(rows), dtype=np.int32) + first_row
  return PromptBatch([problems[row] for row in rows], prompts._replace(row=numbers))


def texts_of(rollout: Rollout, tokenizer: Tokenizer, stops: Sequence[int] = ()) -> list[str]:
  """The written texts, prefixes included, without the token that ended them: the tokenizer's, or one of `stops`."""
  stop = {tokenizer.turn_end, *tokenizer.stop_tokens, *stops}
  responses, lengths = np.asarray(rollout.response), rollout.lengths

  def text(row: int) -> str:
    tokens = responses[row, : lengths[row]].tolist()
    return tokenizer.decode(tokens[:-1] if tokens and tokens[-1] in stop else tokens)

  return dealt(lambda rows: [*map(text, rows)], len(responses))


def verified(
  problems: list[Problem],
  rollout: Rollout,
  tokenizer: Tokenizer,
  task: Task,
  *,
  stops: Sequence[int] = (),
) -> Responses:
  """Responses with the verifier's outcome as reward, NaN where the task has no verifier.

  Args:
    stops: tokens that end a response besides the tokenizer's.
  """
  texts = texts_of(rollout, tokenizer, stops)
  if task.verify is None:
    empty = [''] * len(texts)
    return Responses(problems, rollout, texts, empty, empty, empty)
  verdicts = verdicts_of(task, problems, texts)
  rewards = np.array([verdict.reward for verdict in verdicts], np.float32)
  feedback = [verdict.feedback for verdict in verdicts]
  outcomes = [verdict.outcome for verdict in verdicts]
  second = [verdict.second for verdict in verdicts]
  return Responses(problems, rollout._replace(reward=rewards), texts, feedback, outcomes, second)


def verdicts_of(task: Task, problems: Sequence[Problem], texts: Sequence[str]) -> list[Verdict]:
  """Verdicts on responses, several at a time where the verifier allows; every process judges its share."""
  verdict = functools.partial(verdict_of, task)

  def judged(rows: Sequence[int]) -> list[Verdict]:
    pairs = [problems[row] for row in rows], [texts[row] for row in rows]
    if is_thread_safe(task.verify):
      with ThreadPoolExecutor(THREADS) as pool:
        return list(pool.map(verdict, *pairs))
    return [verdict(*pair) for pair in zip(*pairs, strict=True)]

  return [Verdict(*each) for each in dealt(judged, len(texts))]


def check_fresh(rollout: Rollout, *, version: int, may_be_older: bool, staleness: int = 0) -> None:
  """Refuses text that another student wrote than the one that is about to learn from it.

  Args:
    rollout: what was written, by anybody; only the student's rows age.
    version: of the weights that learn.
    may_be_older: whether the method looks at how likely the text was when it was drawn.
    staleness: versions that the stage lets text be behind; where there are any, they bind every method.
  """
  versions = np.asarray(rollout.version)[np.asarray(rollout.by_student).any(axis=1)]
  oldest, newest = int(versions.min(initial=version)), int(versions.max(initial=version))
  if newest > version:
    raise ValueError(
      f'rollout: weights of version {newest} wrote it, and those of version {version} are to learn from it. Hand the '
      'position in at which it was sampled, or a later one.'
    )
  if staleness and oldest < version - staleness:
    raise ValueError(
      f'rollout: weights of version {oldest} wrote it, those of version {version} are to learn from it, and the stage '
      f'allows {staleness} between them (Stage.staleness). Sample with newer weights, or allow more.'
    )
  if not staleness and oldest < version and not may_be_older:
    raise ValueError(
      f'rollout: weights of version {oldest} wrote it, those of version {version} are to learn from it, and the method '
      'takes it for their own. Sample with the present weights, or take a method that corrects for the age, e.g. '
      'its coefficients times weights.truncated_importance(evidence.student.logp, evidence.rollout.behaviour_logp).'
    )


def trimmed(rollout: Rollout) -> Rollout:
  """Without the columns that no row uses, up to a bucket, so that programs stay few."""
  longest = int(rollout.lengths.max(initial=1))
  width = bucket(longest, minimum=8, maximum=rollout.response.shape[1])
  cut = lambda x: x[:, :width] if x is not None and np.ndim(x) >= 2 else x
  prompt = rollout.prompt
  size = prompt.tokens.shape[1]
  columns = bucket(int(prompt.length.max(initial=1)), minimum=8, maximum=size)
  prompt = prompt._replace(tokens=prompt.tokens[:, size - columns :])
  return jax.tree.map(cut, rollout._replace(prompt=None))._replace(prompt=prompt)


def select(responses: Responses, rows: np.ndarray) -> Responses:
  """Some rows of a batch of responses."""
  pick = lambda values: [values[row] for row in rows]
  rollout = jax.tree.map(lambda x: np.asarray(x)[rows], responses.rollout)
  return Responses(
    pick(responses.problems),
    rollout,
    pick(responses.texts),
    pick(responses.feedback),
    pick(responses.outcomes),
    pick(responses.second),
  )
