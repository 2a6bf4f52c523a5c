"""Floor 6. Flags that several commands have."""

import argparse
import math
import re
import socket
from typing import Any

LOOKED_FOR = (  # by jax.distributed.initialize, in this order
  'JAX looks for Open MPI (mpirun), Slurm (srun sets SLURM_STEP_NODELIST, SLURM_NTASKS, SLURM_PROCID, SLURM_LOCALID), '
  'a Cloud TPU (libtpu installed on a TPU VM, or TPU_WORKER_HOSTNAMES on GKE) and Kubernetes (a Job with an index, and '
  'pip install kubernetes). Elsewhere name the processes: --coordinator HOST:PORT --processes N --process I.'
)
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


def steps(text: str) -> range:
  """Parses N or N:M, the first step and the last.

  >>> steps('3:5')
  range(3, 6)
  """
  first, _, last = text.partition(':')
  numbers = (first, last or first)
  if not all(each.isdigit() and int(each) for each in numbers) or int(numbers[1]) < int(numbers[0]):
    raise argparse.ArgumentTypeError(
      f'a step or a first and a last one is expected, e.g. 12 or 12:14, got {text}'
    )
  return range(int(numbers[0]), int(numbers[1]) + 1)


def add_processes(parser: argparse.ArgumentParser) -> None:
  """Flags of a command that several processes may run together; see `join`."""
  add = parser.add_argument
  add(
    '--distributed',
    action='store_true',
    help='one run of all processes of this cluster: Cloud TPU, GKE, Slurm or Open MPI say how many',
  )
  add(
    '--coordinator',
    metavar='HOST:PORT',
    help='of process 0, where several processes make one run and no cluster says so',
  )
  add('--processes', type=int, metavar='N', help='how many; default: what the cluster says')
  add('--process', type=int, metavar='I', help='which of them this is')


def join(args: argparse.Namespace) -> None:
  """Makes one run of several processes, where the flags ask for it."""
  named = args.processes is not None or args.process is not None
  if args.distributed:
    if named or args.coordinator is not None:
      raise ValueError(
        '--distributed lets the cluster say everything. Leave --coordinator, --processes and --process out, or name '
        'all three without it.'
      )
    return _join_cluster()
  if args.coordinator is None:
    if named:
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
  jax = _jax_of_several()
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


def _join_cluster() -> None:
  """One run of the processes that JAX finds."""
  jax = _jax_of_several()
  try:
    jax.distributed.initialize()
  except ValueError as error:  # a coordinator, a number or an index that nobody named
    raise ValueError(f'--distributed: no cluster was found ({error}) {LOOKED_FOR}') from error
  except (
    Exception
  ) as error:  # names that do not resolve, metadata that do not answer, a port in use
    first = (str(error).splitlines() or [''])[0]
    raise ValueError(
      f'--distributed: the processes of the cluster did not meet ({type(error).__name__}: {first}). Do all of them run '
      'the same command, and may they reach each other?'
    ) from error


def _jax_of_several() -> Any:
  """JAX as a run of several processes needs it.

  Without its service for preemption, which would swallow a SIGTERM that comes while weights are loaded: a run asks all
  processes after every step whether one of them was told to end, see `loop`. And, on CPUs, with one program at a time:
  a process with a single device of a mesh starts the next program beside one that is still sending, and the other
  process would receive them in another order.
  """
  import jax

  jax.config.update('jax_enable_preemption_service', False)
  jax.config.update('jax_cpu_enable_async_dispatch', False)
  return jax


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
