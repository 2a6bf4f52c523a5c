"""Floor 1. What is asked, and what counts as an answer.

A task joins a source of raw rows, a reader that makes a `Problem` of one, and a verifier.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

from opd_jax.data.sources import Raw, Source
from opd_jax.data.tokenizers import Message


class Problem(NamedTuple):
  """One question. Whatever a verifier or a privileged judge may want travels with it."""

  messages: tuple[Message, ...]  # up to where the answer begins
  answer: str = ''  # what a verifier compares with
  demonstration: str | tuple[Message, ...] | None = (
    None  # what to imitate, where there is anything: an answer, or turns
  )
  route: str = ''  # which of several teachers answers for it
  name: str = ''  # file and number, for errors


Reader = Callable[[Raw], Problem | None]  # None: the row is not wanted
Verifier = Callable[[Problem, str], float]  # problem and response -> reward


@dataclasses.dataclass(frozen=True, kw_only=True)
class Task:
  """A kind of problem.

  Args:
    name: as it appears in metrics.
    source: raw rows.
    read: one raw row -> a problem, or None where the row is not wanted.
    verify: problem and response -> reward; None where nobody can tell.
    on_bad_row: what a row that cannot be read does to a run: 'stop' it, or be counted and left out.
  """

  name: str
  source: Source
  read: Reader
  verify: Verifier | None = None
  on_bad_row: str = 'stop'

  def __post_init__(self):
    if self.on_bad_row not in ('stop', 'skip'):
      raise ValueError(f"Task: on_bad_row is 'stop' or 'skip', got {self.on_bad_row!r}.")


def question(text: str) -> tuple[Message, ...]:
  """A question as a conversation."""
  return ({'role': 'user', 'content': text},)


def from_columns(
  *, problem: str = 'problem', answer: str = 'answer', demonstration: str | None = None
) -> Reader:
  """A reader of rows with plain columns of text.

  Args:
    problem, answer: names of the columns.
    demonstration: column of a response to imitate; None where there is none.
  """

  def read(row: Raw) -> Problem:
    return Problem(
      messages=question(str(row[problem])),
      answer=str(row[answer]),
      demonstration=None if demonstration is None else str(row[demonstration]),
    )

  return read


def from_messages(*, column: str = 'messages', answer: str | None = None) -> Reader:
  """A reader of conversations, {role, content} each: what stands before the first answer is the prompt.

  Args:
    column: of the messages.
    answer: column of what a verifier compares with; None where there is none.
  """

  def read(row: Raw) -> Problem:
    turns = [{'role': str(turn['role']), 'content': turn['content']} for turn in row[column]]
    if any(not isinstance(turn['content'], str) for turn in turns):
      raise ValueError('its conversation has a turn without text (a tool call?)')
    begin = next(
      (number for number, turn in enumerate(turns) if turn['role'] == 'assistant'), len(turns)
    )
    if all(turn['role'] != 'user' for turn in turns[:begin]):
      raise ValueError('its conversation begins without a question')
    demonstration = None if begin == len(turns) else tuple(turns[begin:])
    return Problem(
      tuple(turns[:begin]),
      answer='' if answer is None else str(row[answer]),
      demonstration=demonstration,
    )

  return read


def roles(turns: Sequence[Raw], names: Mapping[str, str]) -> list[Message]:
  """Turns of {from, value}, in the names that chat templates know."""
  return [{'role': names[str(turn['from'])], 'content': str(turn['value'])} for turn in turns]
