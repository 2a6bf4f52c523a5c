"""What is printed for people, beside a line at the bottom of a terminal."""

import io
import sys

from opd_jax.commands import console


class Redirected(io.StringIO):
  """Standard output while a line stands at the bottom: what is printed goes above it."""

  def __init__(self, terminal: io.StringIO):
    super().__init__()
    self.rich_proxied_file = terminal


def test_a_table_does_not_write_into_the_line_of_a_run(monkeypatch):
  terminal = io.StringIO()
  monkeypatch.setattr('sys.stdout', Redirected(terminal))
  console.table(('where', 'seen'), [('run', 'a tokenizer')], width=40)
  assert 'a tokenizer' in sys.stdout.getvalue() and not terminal.getvalue()
