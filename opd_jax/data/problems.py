"""Floor 1. Problems, and what counts as an answer to them.

A task joins a source of raw rows, a reader that makes a `Problem` of one, and a verifier.
"""

import dataclasses
import math
import numbers
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, TypeVar

import numpy as np

from opd_jax.data.sources import Raw, Source
from opd_jax.data.tokenizers import Message


class Problem(NamedTuple):
  """One question, with everything that a verifier or a privileged judge may read."""

  messages: tuple[Message, ...]  # up to where the answer begins
  answer: str = ''  # what a verifier compares with
  demonstration: str | tuple[Message, ...] | None = None  # an answer or turns to imitate
  route: str = ''  # names one of several teachers and verifiers
  name: str = ''  # file and number, for errors
  id: str = ''  # the same on every machine, so that outcomes can be paired
  extra: Mapping[str, str] = {}  # further columns, e.g. a hint that only the teacher sees


GIN = '\n  In call to configurable'
OUTCOMES = ('correct', 'wrong', 'unparsed', 'timed out')


class Verdict(NamedTuple):
  """A verifier's result for one response."""

  reward: float  # NaN where the response cannot be verified
  feedback: str = ''  # what is wrong, in words
  outcome: str = ''  # one of OUTCOMES; '' follows from the reward
  second: str = ''  # what a second verifier says, one of OUTCOMES; '' where none was asked


Reader = Callable[[Raw], Problem | None]  # None: the row is not wanted
Verifier = Callable[[Problem, str], float | Verdict]  # problem and response -> reward
AnyVerifier = TypeVar('AnyVerifier', bound=Verifier)

THREADS = 4  # responses that are verified at the same time, by a verifier that is marked for it


def thread_safe(verify: AnyVerifier) -> AnyVerifier:
  """Marks a verifier that several threads may call: where it waits for a process, others go on.

  A verifier that sets alarms (SIGALRM) must not be marked: they work in the main thread only.
  """
  vars(verify)['thread_safe'] = True
  return verify


def is_thread_safe(verify: Verifier | None) -> bool:
  return getattr(verify, 'thread_safe', False)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Task:
  """A kind of problem.

  Args:
    name: as it appears in metrics.
    source: raw rows.
    read: one raw row -> a problem, or None where the row is not wanted.
    verify: problem and response -> reward, or a `Verdict` with feedback; None where responses cannot be verified.
    on_bad_row: what happens at a row that cannot be read: 'stop' ends the run, 'skip' counts it and leaves it out.
  """

  name: str
  source: Source
  read: Reader
  verify: Verifier | None = None
  on_bad_row: str = 'stop'

  def __post_init__(self):
    if self.on_bad_row not in ('stop', 'skip'):
      raise ValueError(f"Task: on_bad_row is 'stop' or 'skip', got {self.on_bad_row!r}.")


def verdict_of(task: Task, problem: Problem, text: str) -> Verdict:
  """Runs the task's verifier on a response; the reward is NaN where the task has none."""
  return (
    Verdict(math.nan)
    if task.verify is None
    else judged(task.verify, problem, text, of=f'task {task.name}')
  )


def judged(verify: Verifier, problem: Problem, text: str, *, of: str) -> Verdict:
  """A verifier's verdict with its outcome named.

  Args:
    verify: whose verdict it is.
    problem, text: what it sees.
    of: whose verifier it is, for errors.
  """
  try:
    result: Any = verify(problem, text)
  except ValueError as error:  # it says what is wrong; gin adds lines to what it has wrapped
    raise ValueError(str(error).partition(GIN)[0]) from error
  except Exception as error:
    reason = str(error).splitlines()[0][:200] if str(error) else ''
    raise ValueError(
      f'{of}: its verifier failed on {problem.name or "a problem"} ({type(error).__name__}: {reason}). It is called '
      'with a problem and a response; in gin, a function that makes a verifier is called: @texts.json_fields().'
    ) from error
  verdict = result if isinstance(result, Verdict) else Verdict(result)
  if not isinstance(verdict.reward, numbers.Real | np.bool_) or math.isinf(verdict.reward):
    raise ValueError(
      f'{of}: its verifier returned {str(result)[:80]} for {problem.name or "a problem"}. '
      'Return a finite number, NaN where the response cannot be verified, or a Verdict.'
    )
  reward, outcome = float(verdict.reward), verdict.outcome
  if not outcome and not math.isnan(reward):
    outcome = 'correct' if reward > 0 else 'wrong'
  for word in (outcome, verdict.second):
    if word not in ('', *OUTCOMES):
      raise ValueError(
        f'{of}: its verifier returned the outcome {word!r}; it is one of {", ".join(OUTCOMES)}.'
      )
  return verdict._replace(reward=reward, outcome=outcome)


def question(text: str) -> tuple[Message, ...]:
  """A question as a conversation."""
  return ({'role': 'user', 'content': text},)


def text_in(row: Raw, column: str) -> str:
  """Returns the text of a column. Another type, or blank text, makes the row a bad one."""
  value = row[column]
  if not isinstance(value, str):
    raise ValueError(f'column {column} holds {_kind(value)}, text is expected')
  if not value.strip():
    raise ValueError(f'column {column} holds an empty text')
  return _whole(value, column)


def _whole(text: str, column: str) -> str:
  """A text of whole characters: JSON can spell half of one, which no tokenizer reads."""
  try:
    text.encode()
  except UnicodeEncodeError as error:
    raise ValueError(
      f'column {column} holds half a character at position {error.start} (a surrogate without its other half)'
    ) from None
  return text


def answer_in(row: Raw, column: str) -> str:
  """The answer of a column: text, which may be empty, or a finite number (72 is '72')."""
  value = row[column]
  if isinstance(value, str):
    return _whole(value, column)
  if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
    raise ValueError(f'column {column} holds {_kind(value)}, text or a number is expected')
  return str(value)


def _kind(value: Any) -> str:
  return 'null' if value is None else type(value).__name__


def from_columns(
  *,
  problem: str = 'problem',
  answer: str | None = 'answer',
  demonstration: str | None = None,
  extra: Sequence[str] = (),
) -> Reader:
  """A reader of rows with plain columns. Questions must be text; answers may be numbers.

  Args:
    problem: column of the question.
    answer: column of what a verifier compares with; None where there is none.
    demonstration: column of a response to imitate; None where there is none.
    extra: columns that travel with the problem under their names, text or numbers.
  """

  def read(row: Raw) -> Problem:
    return Problem(
      messages=question(text_in(row, problem)),
      answer='' if answer is None else answer_in(row, answer),
      demonstration=None if demonstration is None else text_in(row, demonstration),
      extra={column: answer_in(row, column) for column in extra},
    )

  return read


def from_messages(*, column: str = 'messages', answer: str | None = None) -> Reader:
  """A reader of conversations, {role, content} each: the turns before the first answer are the prompt.

  Args:
    column: of the messages.
    answer: column of what a verifier compares with, text or a number; None where there is none.
  """

  def read(row: Raw) -> Problem:
    turns = roles(row[column], column=column, role='role', content='content')
    begin = next(
      (number for number, turn in enumerate(turns) if turn['role'] == 'assistant'), len(turns)
    )
    if all(turn['role'] != 'user' or not turn['content'].strip() for turn in turns[:begin]):
      raise ValueError('its conversation begins without a question')
    return Problem(
      tuple(turns[:begin]),
      answer='' if answer is None else answer_in(row, answer),
      demonstration=None if begin == len(turns) else tuple(turns[begin:]),
    )

  return read


def roles(
  turns: Any,
  *,
  column: str,
  role: str,
  content: str,
  names: Mapping[str, str] | None = None,
) -> list[Message]:
  """The turns of a conversation as {role, content}.

  Args:
    turns: what the row holds.
    column: where it holds them, for errors.
    role, content: what the two are called there.
    names: from the roles of the data set to those that chat templates know; None leaves them.
  """
  if isinstance(turns, str | Mapping) or not isinstance(turns, Sequence):
    raise ValueError(f'column {column} holds {_kind(turns)}, a list of turns is expected')
  messages = []
  for turn in turns:
    if not isinstance(turn, Mapping) or not isinstance(turn[content], str):
      raise ValueError('its conversation has a turn without text (a tool call?)')
    if names is not None and turn[role] not in names:
      raise ValueError(f'its conversation has the unknown role {turn[role]!r}')
    messages.append(
      {'role': str(turn[role]) if names is None else names[turn[role]], 'content': turn[content]}
    )
  return messages
