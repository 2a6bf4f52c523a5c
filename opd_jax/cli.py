"""Floor 7. `opd`, the command line: finds the subcommands in commands/ and runs one of them."""

import argparse
import errno
import importlib
import logging
import pkgutil
import sys
import traceback
from collections.abc import Sequence
from types import ModuleType
from typing import Any, NoReturn

import opd_jax
from opd_jax import commands

DESCRIPTION = """\
On-policy distillation of language models: the student writes, a teacher scores
every token, and the student learns from the scores.
"""
EPILOG = """\
Exit status: 0 done, 2 refused (the message says why and what to do), 3 a rule of the experiment stopped the run and all
is saved (stopping.StopWhen), 1 a certificate that fails, or a bug of ours; 130 and 143: ctrl-c and SIGTERM, a run was
saved and the same command goes on with it.
`opd COMMAND --help` lists the flags of a command; `opd COMMAND --debug` adds the traceback to a refusal.
"""


def subcommands() -> dict[str, ModuleType]:
  """The files of commands/ that have flags, by the name of the command. None of them imports jax before it runs."""
  modules = {
    info.name.replace('_', '-'): importlib.import_module(f'{commands.__name__}.{info.name}')
    for info in pkgutil.iter_modules(commands.__path__)
  }
  return {name: module for name, module in modules.items() if hasattr(module, 'add_flags')}


class Parser(argparse.ArgumentParser):
  """Refuses in one line, as everything else here does."""

  def error(self, message: str) -> NoReturn:
    self.exit(2, f'{self.prog}: {message}; see {self.prog} --help\n')


def parser() -> argparse.ArgumentParser:
  """The flags of all commands."""
  style = argparse.RawDescriptionHelpFormatter
  top = Parser(
    prog='opd',
    description=DESCRIPTION,
    epilog=EPILOG,
    formatter_class=style,
  )
  top.add_argument('--version', action='version', version=f'opd_jax {opd_jax.__version__}')
  added = top.add_subparsers(dest='command', metavar='COMMAND', required=True)
  for name, module in subcommands().items():
    one = added.add_parser(
      name,
      help=module.HELP,
      description=module.HELP,
      epilog=module.EPILOG,
      formatter_class=style,
    )
    one.add_argument('--debug', action='store_true', help='show the traceback of a refusal')
    one.set_defaults(run=module.run)
    module.add_flags(one)
  return top


def main(argv: Sequence[str] | None = None) -> int:
  """Runs one command and returns its exit status."""
  args = parser().parse_args(argv)
  logging.getLogger('absl').setLevel(logging.WARNING)
  if not args.debug:  # what is logged with a traceback is raised as well, and then told in words
    for library in ('absl', 'asyncio'):
      logging.getLogger(library).addFilter(_without_traceback)
    if sys.unraisablehook is sys.__unraisablehook__:  # else somebody else listens
      sys.unraisablehook = _without_echoes
  try:
    return args.run(args) or 0
  except (ValueError, OSError) as error:
    if args.debug:
      traceback.print_exc()
    print(f'opd {args.command}: {_said(error).removeprefix(args.command + ": ")}', file=sys.stderr)
    return 2
  except KeyboardInterrupt:
    print(f'opd {args.command}: stopped', file=sys.stderr)
    return 130


def _without_traceback(record: logging.LogRecord) -> bool:
  return not record.exc_info


def _without_echoes(unraisable: Any) -> None:
  """Threads of tensorstore report to an event loop that a failed write has closed."""
  if str(unraisable.exc_value) != 'Event loop is closed':
    sys.__unraisablehook__(unraisable)


def _said(error: Exception) -> str:
  """A refusal in words; of a full disk, what to do."""
  if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
    where = f' ({error.filename})' if error.filename else ''
    return f'the disk is full{where}. Free some space, then run the same command again.'
  if isinstance(error, OSError) and error.filename and error.strerror:
    return f'{error.filename} cannot be read or written ({error.strerror}). See to its place and its permissions.'
  return str(error)


if __name__ == '__main__':
  sys.exit(main())
