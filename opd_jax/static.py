"""Floor 0. One idiom for settings: a frozen record that hashes, prints, and is static under `jit`."""

import dataclasses
from collections.abc import Callable
from typing import Any, TypeVar, dataclass_transform, overload

import jax

T = TypeVar('T')


@overload
def static(cls: type[T]) -> type[T]: ...
@overload
def static(cls: None = None, *, kw_only: bool) -> Callable[[type[T]], type[T]]: ...


@dataclass_transform(frozen_default=True, kw_only_default=True)
def static(cls: Any = None, *, kw_only: bool = True) -> Any:
  """Makes a class a frozen keyword-only dataclass that `jit` treats as part of the program.

  Equal records are one program; an array inside one would not hash, so none belongs there. Values are checked in
  `__post_init__`, where the record is made.

  Args:
    cls: the class.
    kw_only: False lets fields be given by position, for records of one number: `TeacherTopK(32)`.

  >>> @static(kw_only=False)
  ... class Below:
  ...   delta: float = 0.0
  >>> Below(0.1), Below(0.1) == Below(delta=0.1)
  (Below(delta=0.1), True)
  """

  def made(cls: type) -> type:
    record = dataclasses.dataclass(frozen=True, kw_only=kw_only)(cls)
    return jax.tree_util.register_static(record)

  return made if cls is None else made(cls)
