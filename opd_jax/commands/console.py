"""Floor 6. Output for people: progress bars on a terminal, plain lines elsewhere, tables."""

import io
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from opd_jax import units


@contextmanager
def progress_bar(title: str) -> Iterator[Callable[[int, int, str], None]]:
  """A bar on a terminal; elsewhere a line every five seconds."""
  if sys.stderr.isatty():
    from rich.console import Console
    from rich.progress import Progress

    with Progress(console=Console(stderr=True), transient=True) as bar:
      task = bar.add_task(title)
      yield lambda done, total, name: bar.update(
        task, completed=done, total=total, description=f'{title} {name}'
      )
    return
  last = time.monotonic()

  def line(done: int, total: int, name: str) -> None:
    nonlocal last
    if time.monotonic() - last > 5:
      last = time.monotonic()
      print(f'{title}: {done}/{total} {name}', file=sys.stderr, flush=True)

  yield line


class RunLine:
  """How a run stands: one line at the bottom of a terminal, cut to its width; elsewhere a line every five seconds, and
  always the first step and the last.

  Args:
    title: in front.
  """

  def __init__(self, title: str):
    self.title, self._bar, self._last = title, None, time.monotonic()

  def __enter__(self) -> 'RunLine':
    if sys.stderr.isatty():
      from rich.console import Console
      from rich.progress import Progress, TextColumn
      from rich.table import Column

      column = Column(no_wrap=True, overflow='ellipsis')
      text = TextColumn('{task.description}', markup=False, table_column=column)
      console = Console(stderr=True)
      self._bar = Progress(
        text, console=console, transient=True, redirect_stdout=sys.stdout.isatty()
      )
      self._bar.start()
      self._bar.add_task(f'{self.title} begins')
    return self

  def __exit__(self, *_: Any) -> None:
    if self._bar is not None:
      self._bar.stop()

  def progress(self, done: int, total: int, text: str) -> None:
    self._show(f'{self.title} {done}/{total} {text}', always=done in (1, total))

  def status(self, text: str) -> None:
    self._show(text, always=False)

  def _show(self, text: str, *, always: bool) -> None:
    if self._bar is not None:
      self._bar.update(self._bar.task_ids[0], description=text)
    elif always or time.monotonic() - self._last > 5:
      self._last = time.monotonic()
      print(text, file=sys.stderr, flush=True)


def table(head: Sequence[str], rows: Sequence[Sequence[Any]], *, width: int | None = None) -> None:
  """Prints aligned columns.

  Args:
    head: their names.
    rows: their cells.
    width: of the whole; None takes the terminal's, or 160 where there is none.
  """
  from rich.console import Console
  from rich.markup import escape
  from rich.table import Table

  shown = Table(*head, box=None, pad_edge=False)
  for row in rows:
    shown.add_row(*(escape(str(cell)) for cell in row))
  if width is None and not sys.stdout.isatty():
    width = 160
  text = io.StringIO()  # a console of its own would write into the line of a run
  coloured = True if sys.stdout.isatty() else None
  Console(width=width, highlight=False, file=text, force_terminal=coloured).print(shown)
  print(text.getvalue(), end='', flush=True)


def held(parts: Mapping[str, int], unknown: Sequence[str] = ()) -> str:
  """Sizes by name, largest first, and their sum; what is not in it is named."""
  listed = ', '.join(
    f'{name} {units.memory(size)}'
    for name, size in sorted(parts.items(), key=lambda x: -x[1])
    if size
  )
  return f'{units.memory(sum(parts.values()))} on each device ({listed}), and {", ".join([*unknown, "activations"])}'
