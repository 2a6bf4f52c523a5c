"""Floor 0. Checks that what gin has put into records is of the kind that their annotations name."""

import dataclasses
import typing
from collections.abc import Mapping, Sequence
from typing import Any

from beartype import BeartypeConf
from beartype.door import is_bearable
from beartype.roar import BeartypeException

NUMBERS = BeartypeConf(is_pep484_tower=True)  # 1 is a float


def check(record: Any, *, name: str | None = None) -> None:
  """Refuses a record in which a field, or a field of a record inside, holds something of another kind.

  Args:
    record: a dataclass of ours.
    name: of the record in the message; None takes its class's.
  """
  name = type(record).__name__ if name is None else name
  fields = [field.name for field in dataclasses.fields(record)]
  check_fields(record, *fields, name=name)
  for field in fields:
    for place, part in _records(getattr(record, field)):
      check(part, name=f'{name}.{field}{place}')


def check_fields(record: Any, *fields: str, name: str | None = None) -> None:
  """Refuses a record in which one of these fields holds something of another kind; looks at nothing inside.

  Args:
    record: a dataclass of ours.
    fields: names of those that are looked at.
    name: see `check`.
  """
  hints = _hints(type(record))
  for field in fields:
    value, hint = getattr(record, field), hints.get(field, Any)
    if not _is(value, hint):
      shown = repr(value) if isinstance(value, str) else str(value)
      raise ValueError(
        f'{name or type(record).__name__}: {field} must be {_text(hint)}, got {shown[:80]}. In gin, texts have quotes, '
        'and what makes a record or a function is called: @judges.frozen(), not @judges.frozen.'
      )


def check_options(record: type, options: Mapping[str, Any]) -> None:
  """Refuses a name that is no field of a record, and tells which there are."""
  names = [field.name for field in dataclasses.fields(record)]
  if unknown := sorted(options.keys() - {*names}):
    raise ValueError(
      f'{record.__name__}: it has no option {unknown[0]!r}; it has {", ".join(names)}.'
    )


def check_whole(what: str, value: Any, *, least: int, most: int | None = None) -> None:
  """Refuses what is no whole number within bounds; True, which Python takes for 1, is none.

  >>> check_whole('Stage warm: steps', True, least=1)
  Traceback (most recent call last):
  ValueError: Stage warm: steps must be a whole number of at least 1, got True.
  """
  sound = isinstance(value, int) and not isinstance(value, bool)
  if sound and least <= value and (most is None or value <= most):
    return
  bounds = f'is a whole number from {least} to {most}'
  if most is None:
    bounds = f'must be a whole number of at least {least}'
  raise ValueError(f'{what} {bounds}, got {value!r}.')


def _hints(kind: type) -> dict[str, Any]:
  try:
    return typing.get_type_hints(kind)
  except NameError:  # an annotation that only type checkers can resolve
    return {}


def _is(value: Any, hint: Any) -> bool:
  try:
    return is_bearable(value, hint, conf=NUMBERS)
  except BeartypeException:  # a hint that has no meaning at run time
    return True


def _records(value: Any) -> list[tuple[str, Any]]:
  """The records in a field, with where they stand in it."""
  if isinstance(value, Mapping):
    return [(f'[{key!r}]', part) for key, part in value.items() if _is_ours(part)]
  if isinstance(value, Sequence) and not isinstance(value, str):
    return [(f'[{number}]', part) for number, part in enumerate(value) if _is_ours(part)]
  return [('', value)] if _is_ours(value) else []


def _is_ours(value: Any) -> bool:
  return dataclasses.is_dataclass(value) and type(value).__module__.startswith('opd_jax.')


def _text(hint: Any) -> str:
  if isinstance(hint, type) and not typing.get_args(hint):
    return f'a {hint.__name__}'
  parts = typing.get_args(hint)
  if parts and typing.get_origin(hint) not in (None,) and type(None) in parts:
    return ' or '.join('None' if part is type(None) else _text(part) for part in parts)
  return str(hint).replace('typing.', '').replace('collections.abc.', '')
