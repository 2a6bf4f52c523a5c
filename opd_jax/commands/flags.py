"""Floor 6. Flags that several commands have."""

import argparse
import math
import re
import socket
from typing import Any

DTYPES = ('float32', 'bfloat16', 'float16')
GIN = """\
Experiments are gin files: --gin_file and --gin_bindings may be repeated, later ones win, and what a file includes
is read before it. Every binding in the last file and in --gin_bindings
must be used, or the command fails; unused bindings of other files are ignored.
A gin file calls functions. It may import what experiments are made of, modules of its
own folder and those that --module names; anything else, e.g. `import os`, is refused
unless --trust_gin is given (SECURITY.md).
"""


def seed(text: str) -> int:
  """Parses a seed that fits the 32 bits of a key."""
  if not text.isdigit() or int(text) >= 2**32:
    raise argparse.ArgumentTypeError(f'a seed is a whole number from 0 to {2**32 - 1}, got {text}')
  return int(text)


def count(text: str) -> int:
  """Parses a whole number above 0."""
  if not text.isdigit() or not int(text):
    raise argparse.ArgumentTypeError(f'a whole number above 0 is expected, got {text}')
  return int(text)


def positive(text: str) -> float:
  """Parses a number above 0."""
  try:
    value = float(text)
  except ValueError:
    value = math.nan
  if not 0 < value < math.inf:
    raise argparse.ArgumentTypeError(f'a number above 0 is expected, got {text}')
  return value


def add_model(parser: argparse.ArgumentParser) -> None:
  """Flags of a command that reads a model."""
  parser.add_argument(
    '--model',
    required=True,
    metavar='SRC',
    help='preset (random weights), folder, or hub id',
  )
  parser.add_argument(
    '--dtype',
    choices=DTYPES,
    help='of parameters and activations; default: as the model is stored',
  )
  parser.add_argument(
    '--seed',
    type=seed,
    default=0,
    help='of the samples, and of the weights of a preset',
  )
  parser.add_argument('--json', action='store_true', help='one object a line')


def add_gin(parser: argparse.ArgumentParser) -> None:
  """Flags of a command that builds an experiment."""
  parser.add_argument(
    '--gin_file',
    action='append',
    default=[],
    metavar='FILE',
    help='may be repeated',
  )
  parser.add_argument(
    '--gin_bindings',
    action='append',
    default=[],
    metavar='NAME=VALUE',
    help='may be repeated',
  )
  parser.add_argument(
    '--module',
    action='append',
    default=[],
    metavar='MODULE',
    help='a module that gin files may import, e.g. my_method of ./my_method.py; may be repeated',
  )
  parser.add_argument(
    '--trust_gin',
    action='store_true',
    help='let gin files import and call anything: they then can do whatever you can',
  )


def trust_of(args: argparse.Namespace) -> Any:
  """What the gin files of a command may import and call."""
  from opd_jax.trust import Trust

  return Trust(args.module, everything=args.trust_gin)


def add_processes(parser: argparse.ArgumentParser) -> None:
  """Flags of a command that several processes may run together; see `join`."""
  add = parser.add_argument
  add(
    '--coordinator',
    metavar='HOST:PORT',
    help='of process 0, where several processes make one run',
  )
  add('--processes', type=int, metavar='N', help='how many; default: what the cluster says')
  add('--process', type=int, metavar='I', help='which of them this is')


def join(args: argparse.Namespace) -> None:
  """Makes one run of several processes, where the flags ask for it."""
  if args.coordinator is None:
    if args.processes is not None or args.process is not None:
      raise ValueError(
        '--processes and --process make one run of several processes only together with --coordinator HOST:PORT.'
      )
    return
  if not re.fullmatch(r'[^\s:]+:\d+|\[[0-9a-fA-F:]+\]:\d+', args.coordinator):
    raise ValueError(
      f'--coordinator is HOST:PORT of process 0, e.g. 10.0.0.2:1234, got {args.coordinator!r}.'
    )
  if args.process == 0:
    _check_port(args.coordinator)
  import jax

  try:
    jax.distributed.initialize(
      args.coordinator,
      num_processes=args.processes,
      process_id=args.process,
    )
  except RuntimeError as error:
    raise ValueError(
      f'--coordinator {args.coordinator}: {str(error).splitlines()[0]} Is the port free, and do all processes run?'
    ) from error


def _check_port(coordinator: str) -> None:
  """Refuses a port that another process has: the coordinator's service would die of it without a word."""
  port = int(coordinator.rpartition(':')[2])
  try:
    with socket.socket() as probe:
      probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
      probe.bind(('', port))
  except (OSError, OverflowError) as error:
    reason = getattr(error, 'strerror', None) or error
    raise ValueError(
      f'--coordinator {coordinator}: port {port} cannot be opened here ({reason}). Choose another one, the same for '
      'all processes.'
    ) from error


def add_stored_dtype(parser: argparse.ArgumentParser) -> None:
  """The flag of a command that writes a model."""
  parser.add_argument('--dtype', choices=DTYPES, help='type to store; default: as it is')


def add_json(parser: argparse.ArgumentParser) -> None:
  """The flag of a command that can print JSON instead of a table."""
  parser.add_argument('--json', action='store_true', help='for programs')


def add_module(parser: argparse.ArgumentParser) -> None:
  """The flag of a command that reads methods, the library's or a user's."""
  parser.add_argument(
    '--module',
    metavar='MODULE',
    help='a module of your own with methods, e.g. my_method of ./my_method.py; default: opd_jax.methods',
  )
