"""Floor 1. Checks that two models share a vocabulary; tables of equal size do not prove it."""

import dataclasses
from collections.abc import Iterator, Sequence

from opd_jax.data.tokenizers import Tokenizer


@dataclasses.dataclass(frozen=True, kw_only=True)
class Comparison:
  """How the vocabularies of two models compare.

  `shared` is the number of ids that have the same string in both. Table rows beyond a model's last token are
  padding for the hardware and have no string.
  """

  shared: int
  differences: tuple[str, ...]
  stop_difference: str | None
  student_padding: range
  teacher_padding: range

  def check(self, *, stops: bool = True) -> None:
    """Raises with every difference named; `stops=False` lets the two end their texts differently."""
    problems = list(self.differences)
    if stops and self.stop_difference:
      problems.append(self.stop_difference)
    if problems:
      raise ValueError(
        'tokenizers: student and teacher do not share a vocabulary, so their probabilities cannot be compared '
        'token by token: '
        + '; '.join(problems)
        + '. Use a teacher of the same family, pass the same stop_tokens '
        'to both, or a method for unlike tokenizers.'
      )


def string_differences(
  ours: Sequence[str | None],
  theirs: Sequence[str | None],
  *,
  student_rows: int,
  teacher_rows: int,
) -> tuple[list[str], int]:
  """Describes the differences of two vocabularies and counts the ids they share. Padded rows are no difference."""
  unlike = [i for i, (a, b) in enumerate(zip(ours, theirs, strict=False)) if a != b]
  differences = [
    f'the tokenizer of the {who} has {len(strings)} tokens, its model only {rows} rows'
    for who, strings, rows in (('student', ours, student_rows), ('teacher', theirs, teacher_rows))
    if len(strings) > rows
  ]
  differences += _unlike_tokens(ours, theirs, unlike)
  return differences, min(len(ours), len(theirs)) - len(unlike)


def check_strings(
  ours: Sequence[str | None],
  theirs: Sequence[str | None],
  *,
  name: str,
  student_rows: int,
  judge_rows: int,
) -> None:
  """Refuses a judge whose ids stand for other strings than the student's.

  Args:
    ours, theirs: the string of every id.
    name: of the judge, for the error.
    student_rows, judge_rows: entries of the models' tables.
  """
  differences, _ = string_differences(
    ours, theirs, student_rows=student_rows, teacher_rows=judge_rows
  )
  if differences:
    raise ValueError(
      f'{name}: it does not share a vocabulary with the student, so their probabilities cannot be compared token by '
      f'token: {"; ".join(differences)}. Take a judge of the same family, or name it as one with '
      'a tokenizer of its own: judges.foreign.'
    )


def compare(
  student: Tokenizer, teacher: Tokenizer, *, student_rows: int, teacher_rows: int
) -> Comparison:
  """Compares two tokenizers: strings, ids, special tokens, padded rows.

  Args:
    student, teacher: the tokenizers.
    student_rows, teacher_rows: `vocab_size` of the models that go with them.
  """
  ours, theirs = student.strings(), teacher.strings()
  differences, shared = string_differences(
    ours, theirs, student_rows=student_rows, teacher_rows=teacher_rows
  )
  one, other = student.specials(), teacher.specials()
  if special := sorted(
    name for name in one.keys() | other.keys() if one.get(name) != other.get(name)
  ):
    differences.append(
      f'{len(special)} tokens are special on one side or with another id ({", ".join(special[:3])})'
    )
  stop_difference = None
  if student.stop_tokens != teacher.stop_tokens:
    name = lambda strings, i: str(strings[i]) if i < len(strings) else f'id {i}'
    named = [
      sorted(name(s, i) for i in t.stop_tokens) for s, t in ((ours, student), (theirs, teacher))
    ]
    stop_difference = f'the student ends a text with {named[0]}, the teacher with {named[1]}'
  return Comparison(
    shared=shared,
    differences=tuple(differences),
    stop_difference=stop_difference,
    student_padding=range(len(ours), student_rows),
    teacher_padding=range(len(theirs), teacher_rows),
  )


def _unlike_tokens(
  ours: Sequence[str | None], theirs: Sequence[str | None], unlike: Sequence[int]
) -> Iterator[str]:
  """Ids with two meanings, and tokens that only one side has."""
  if unlike:
    examples = ', '.join(f'{i}: {ours[i]!r} against {theirs[i]!r}' for i in unlike[:3])
    yield f'{len(unlike)} ids stand for other strings (id {examples})'
  longer, who = (ours, 'student') if len(ours) > len(theirs) else (theirs, 'teacher')
  if extra := [name for name in longer[min(len(ours), len(theirs)) :] if name is not None]:
    yield f'{len(extra)} tokens only the {who} has ({", ".join(map(repr, extra[:3]))})'
