"""Floor 3. A context builds a judge's prompt for a row; None leaves the row without a judgement.

A context is a function of a `Scene`. Those here show what lies in the data (`solution`, `column`) or what other
responses to the same question tell (`siblings`); `guarded` holds any of them to an answer that may not be shown.
"""

import dataclasses
import re
from collections.abc import Sequence

import numpy as np

from opd_jax import ramps
from opd_jax.data.problems import Problem, Reader, Task
from opd_jax.data.sources import Raw
from opd_jax.data.tokenizers import Message
from opd_jax.judges.scenes import Context, Scene, columns_of, looks_at, name_of, numbers_of
from opd_jax.ramps import Number, Watching
from opd_jax.static import static

SOME_ROWS = 1  # behind a row's seed: this draw and those of `siblings` are apart


def _marked(
  context: Context,
  *,
  looks_at: str = '',
  columns: Sequence[str] = (),
  numbers: Sequence[Number] = (),
) -> Context:
  """Marks a context with what it needs.

  Args:
    context: it.
    looks_at: see `scenes.looks_at`.
    columns: that it reads, so that a row without one is found where rows are read.
    numbers: that may move; those that look at metrics are shown the metrics of the stage.
  """
  vars(context)['looks_at'] = looks_at
  vars(context)['columns'] = tuple(columns)
  vars(context)['numbers'] = tuple(each for each in numbers if isinstance(each, Watching))
  return context


# --- what lies in the data ------------------------------------------------------------------------


def solution(
  *, introduction: str = '\n\nA correct solution:\n', closing: str = '', part: Number = 1.0
) -> Context:
  """The problem with the data set's solution behind it; no judgement where a problem has none.

  Args:
    introduction: between the question and the solution.
    closing: behind the solution, e.g. where it ends and what is to be done with it.
    part: of the solution's characters, from its beginning; where that is none, the judge reads the question alone. As
      it moves from 1 to 0, what the judge is shown fades.
  """
  _check_fraction('solution: part', part)

  def context(scene: Scene) -> Sequence[Message] | None:
    text = scene.problem.demonstration
    if not isinstance(text, str) or not text:
      return None
    if not (text := _beginning(text, part, scene)):
      return scene.problem.messages
    return behind(scene.problem, introduction + text + closing)

  return _marked(context, looks_at='data', numbers=(part,))


def column(
  *,
  name: str,
  introduction: str = '\n\n',
  closing: str = '',
  instead_of: str | None = None,
  part: Number = 1.0,
) -> Context:
  """The problem with a column of the data: a hint, a cue, or a short passage in place of a long document.

  A row in which the column is empty has no judgement. A row without the column is a bad row of the data.

  Args:
    name: of the column; a reader takes it along, e.g. `from_columns(extra=('hint',))`.
    introduction, closing: in front of what it holds, and behind it.
    instead_of: the column whose text in the question it replaces; None puts it behind the question.
    part: of the column's characters, as in `solution`.
  """
  _check_fraction('column: part', part)

  def context(scene: Scene) -> Sequence[Message] | None:
    extra = scene.problem.extra
    if not extra[name].strip():
      return None
    if not (shown := _beginning(extra[name], part, scene)):
      return scene.problem.messages
    text = introduction + shown + closing
    if instead_of is None:
      return behind(scene.problem, text)
    return _in_place_of(scene.problem, extra[instead_of], text, column=instead_of)

  columns = [name] if instead_of is None else [name, instead_of]
  return _marked(context, looks_at='data', columns=columns, numbers=(part,))


def _beginning(text: str, part: Number, scene: Scene) -> str:
  """The part of a text that is shown of it at this step."""
  fraction = ramps.at(part, scene.step, scene.decisions)
  return text[: round(fraction * len(text))].rstrip() if fraction < 1 else text


def _check_fraction(name: str, number: Number) -> None:
  least, most = ramps.extremes(number) if isinstance(number, Number) else (-1, -1)
  if not 0 <= least <= most <= 1:
    raise ValueError(f'{name} must lie in [0, 1], got {number}.')


def behind(problem: Problem, text: str) -> Sequence[Message]:
  """The problem with a text behind its question."""
  *before, last = problem.messages
  return (*before, {**last, 'content': last['content'] + text})


def _in_place_of(problem: Problem, old: str, new: str, *, column: str) -> Sequence[Message]:
  found = sum(message['content'].count(old) for message in problem.messages) if old else 0
  if found != 1:
    raise ValueError(
      f'the text of the column {column} must stand once in the question, it is there {found} times.'
    )
  return tuple(
    {**message, 'content': message['content'].replace(old, new)} for message in problem.messages
  )


# --- what other responses tell --------------------------------------------------------------------


@static
class Wording:
  """What stands in front of each part of a prompt of `siblings`, and at its end."""

  success: str = '\n\nA correct solution:\n'
  another: str = '\n\nAnother correct solution:\n'
  failure: str = '\n\nA wrong solution, whose mistake is to be avoided:\n'
  feedback: str = '\n\nYour earlier attempt failed. What was said of it:\n'
  closing: str = '\n\nNow answer the question correctly.'


def siblings(
  *,
  successes: int = 1,
  failures: int = 0,
  feedback: str = 'never',
  strip_thinking: bool = True,
  threshold: float = 0.5,
  wording: Wording = Wording(),
) -> Context:
  """The problem with other responses to it and what the verifier said of the row; no judgement where there is nothing.

  The row itself is never shown. The order is that of SDPO (arXiv:2601.20802) and MOPD (arXiv:2605.12652): question,
  successes, failures, feedback. Which of several responses are shown is drawn with the row's own seed.

  Args:
    successes, failures: the most that are shown.
    feedback: whether the verifier's words on the row are shown where the row failed: 'never', 'always', or 'without
      success', only where no success is.
    strip_thinking: leaves out what a response says before `</think>`.
    threshold: the least reward of a success. A response that nobody verified is neither success nor failure.
    wording: what is said between the parts.
  """
  if feedback not in ('never', 'without success', 'always') or min(successes, failures) < 0:
    raise ValueError(
      "siblings: feedback is 'never', 'without success' or 'always', successes and failures are not negative; got "
      f'{feedback!r}, {successes}, {failures}.'
    )
  if not isinstance(strip_thinking, bool):
    raise ValueError(f'siblings: strip_thinking is True or False, got {strip_thinking!r}.')
  if not successes and not failures and feedback == 'never':
    raise ValueError('siblings: nothing is to be shown; take successes, failures or feedback.')

  def context(scene: Scene) -> Sequence[Message] | None:
    order = scene.rng.permutation(len(scene.mates))
    mates = [scene.mates[number] for number in order]
    right = [mate.text for mate in mates if mate.reward >= threshold][:successes]
    wrong = [mate.text for mate in mates if mate.reward < threshold][:failures]
    headings = [wording.success, *[wording.another] * len(right)]
    parts = list(zip(headings, right, strict=False)) + [(wording.failure, text) for text in wrong]
    parts = [(heading, _spoken(text) if strip_thinking else text) for heading, text in parts]
    wanted = feedback == 'always' or (feedback == 'without success' and not right)
    if wanted and scene.feedback and scene.reward < threshold:
      parts.append((wording.feedback, scene.feedback))
    if not parts:
      return None
    text = ''.join(heading + text for heading, text in parts)
    return behind(scene.problem, text + wording.closing)

  return _marked(context, looks_at='mates' if feedback == 'never' else '')


def _spoken(text: str) -> str:
  """A response without what was thought before it."""
  return text.rpartition('</think>')[2].strip()


# --- around a context -----------------------------------------------------------------------------


def guarded(*, context: Context, where_shown: str = 'refuse') -> Context:
  """Another context, held to it that the problem's answer and its demonstration are not in what it shows.

  It finds the answer as a word of its own, in either case of letters, more often than the question has it. An answer in
  other words, e.g. 1/2 for 0.5, it does not find.

  Args:
    context: what is shown.
    where_shown: 'refuse' stops the run at a row that shows its answer, and names it; 'unknown' leaves the row without a
      judgement.
  """
  if where_shown not in ('refuse', 'unknown'):
    raise ValueError(f"guarded: where_shown is 'refuse' or 'unknown', got {where_shown!r}.")

  def held(scene: Scene) -> Sequence[Message] | None:
    messages = context(scene)
    if messages is None or (secret := _given_away(scene.problem, messages)) is None:
      return messages
    if where_shown == 'unknown':
      return None
    raise ValueError(
      f'it shows the answer, {secret[:40]!r}. Take the answer out of what {name_of(context)} shows, or leave such rows '
      "without a judgement: guarded.where_shown = 'unknown'."
    )

  return _marked(
    held, looks_at=looks_at(context), columns=columns_of(context), numbers=numbers_of(context)
  )


def in_some_rows(*, context: Context, fraction: Number) -> Context:
  """Another context in a fraction of the rows, drawn row by row; in the others the judge reads the question alone.

  With a `Ramp` from 1 to 0 a privileged teacher becomes one that sees what the student sees.

  Args:
    context: what is shown in these rows.
    fraction: of the rows.
  """
  _check_fraction('in_some_rows: fraction', fraction)

  def some(scene: Scene) -> Sequence[Message] | None:
    drawn = np.random.default_rng([*scene.seed, SOME_ROWS]).random()
    if drawn < ramps.at(fraction, scene.step, scene.decisions):
      return context(scene)
    return scene.problem.messages

  return _marked(some, columns=columns_of(context), numbers=(fraction, *numbers_of(context)))


def _given_away(problem: Problem, messages: Sequence[Message]) -> str | None:
  """The answer or the demonstration, where more of it is shown than asked."""
  whole = lambda those: '\n'.join(message['content'] for message in those).casefold()
  asked, told = whole(problem.messages), whole(messages)
  for secret in (problem.answer, problem.demonstration):
    if isinstance(secret, str) and secret.strip():
      word = re.compile(rf'(?<![\w.]){re.escape(secret.strip().casefold())}(?!\w|\.\d)')
      if len(word.findall(told)) > len(word.findall(asked)):
        return secret
  return None


def with_context(*, task: Task, context: Context) -> Task:
  """A task whose questions are those that a judge with this context reads: to learn to read it, or to evaluate it.

  Rows of which the context shows nothing are left out. Of other responses nothing is known here.

  Args:
    task: whose rows and verifier.
    context: what each question shows.
  """
  return dataclasses.replace(task, read=_with_context(task.read, context))


def _with_context(read: Reader, context: Context) -> Reader:
  def reading(raw: Raw) -> Problem | None:
    problem = read(raw)
    if problem is None:
      return None
    nobody = float('nan')
    messages = context(Scene(problem, '', nobody, '', (), (0, 0), 0))
    return None if messages is None else problem._replace(messages=tuple(messages))

  return reading
