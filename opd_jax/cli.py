"""Floor 7. `opd`, the command line: the only file that imports gin, and the only one that reads flags."""

import argparse
import dataclasses
import json
import logging
import re
import sys
import time
import tokenize
import traceback
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import opd_jax
from opd_jax import console

if TYPE_CHECKING:
  from opd_jax.training.experiment import Experiment

DESCRIPTION = """\
On-policy distillation of language models: the student writes, a teacher scores
every token, the student learns from that.

  opd sample  --model tiny --prompt 'Hello'      write with a model
  opd score   --model tiny --json rows.jsonl     what a model thinks of every token
  opd convert Qwen/Qwen3-0.6B models/qwen3-0.6b  published weights into our folder
  opd convert models/student exported            and back, for transformers
  opd plan    --gin_file F                       what would lie where, before it does
  opd demo                                       all of it at toy size, in minutes
  opd train   --gin_file F --workdir DIR         run an experiment, or go on with it
  opd export  DIR exported                       the trained student, for transformers
  opd methods                                    the papers this library knows
  opd certify --all                              that their gradients are what they claim
"""
EPILOG = """\
Experiments are gin files: --gin_file and --gin_bindings may be repeated, later ones win;
what a file includes is read before it.
  opd plan --gin_file experiments/models/qwen3_8b.gin --gin_file experiments/layouts/fsdp.gin \\
           --gin_bindings 'presets.qwen3_8b.param_dtype = "bfloat16"' --devices 8
Exit status: 0 done, 2 refused (the message says why and what to do), 1 a certificate that fails, or a bug of ours.
`opd COMMAND --help` tells the rest; `opd COMMAND --debug` adds the traceback to a refusal.
"""


MOST_DEVICES = 4096  # simulating them takes the processor 6 s
DTYPES = ('float32', 'bfloat16', 'float16')
INCLUDE = re.compile(r'^include\s+[\'"](.+)[\'"].*$', flags=re.MULTILINE)


class Refusal(ValueError):
  """Something the user can mend; printed without a traceback."""


# --- gin ------------------------------------------------------------------------------------------


def build(files: Sequence[str], bindings: Sequence[str]) -> 'tuple[Experiment, str]':
  """gin files and bindings -> the experiment, and the configuration that was in force.

  gin is finished when this returns: what it built is plain Python, and nothing jitted ever calls it.
  """
  import gin

  from opd_jax.training.experiment import Experiment

  if not files:
    raise Refusal(
      'no experiment given. Name at least one --gin_file, e.g. experiments/models/tiny.gin.'
    )
  gin.clear_config()
  where = 'gin'
  try:
    for file in _with_includes(files):
      where = str(file)
      gin.parse_config(INCLUDE.sub('', file.read_text()))
    # Bindings may name whatever the files import, also what these did not use.
    imports = re.findall(r'^(?:from|import) .*$', gin.config_str(), flags=re.MULTILINE)
    where = '--gin_bindings'
    gin.parse_config([*imports, *bindings])
    where = 'experiment'
    gin.finalize()
    experiment = gin.get_configurable(Experiment)()
  except (
    ValueError,
    AttributeError,
    TypeError,
    SyntaxError,
    ImportError,
    NameError,
    KeyError,
  ) as error:
    raise Refusal(f'{where}: {_gin_message(error)}') from error
  except tokenize.TokenError as error:
    raise Refusal(f'{where}: a value does not end ({error}). Check brackets and quotes.') from error
  operative = gin.operative_config_str()
  if dead := _dead(gin.config_str(), operative):
    raise Refusal(
      f'these bindings changed nothing: {", ".join(dead)}. Nothing that is built reads them; '
      'remove them, or name what you meant to set.'
    )
  return experiment, operative


def _with_includes(
  files: Iterable[str | Path], by: Path | None = None, seen: set | None = None
) -> Iterator[Path]:
  """Each file once, after what it includes: read again, a base would take back what was set over it.

  An include is looked for from the working directory and from every folder above its includer.
  """
  seen = set() if seen is None else seen
  for name in files:
    folders = [Path(), *(by.resolve().parents if by else ())]
    found = next((folder / name for folder in folders if (folder / name).is_file()), None)
    if found is None:
      raise Refusal(
        f'gin file not found: {name}{f", included by {by}" if by else ""}. The shipped ones lie in experiments/.'
      )
    if found.resolve() in seen:
      continue
    seen.add(found.resolve())
    yield from _with_includes(INCLUDE.findall(found.read_text()), by=found, seen=seen)
    yield found


def _dead(written: str, operative: str) -> list[str]:
  """Bindings that were written and never read. Reading through a macro puts its scope in front of a name."""
  bound, read = (
    re.findall(r'^([\w./]+) = ', text, flags=re.MULTILINE) for text in (written, operative)
  )
  return sorted(name for name in bound if not any(f'/{used}'.endswith(f'/{name}') for used in read))


def _gin_message(error: Exception) -> str:
  text = re.sub(r'\n\s*In bindings string line \d+\n\s*', '\n  in: ', str(error).strip())
  if required := re.search(r'(\w+)/macro\.value set to `%gin\.REQUIRED`', text):
    name = required[1]
    return (
      f'{name} is required and nobody set it. Add a --gin_file that does (experiments/{name.lower()}s/), '
      f"or --gin_bindings '{name} = …'."
    )
  if required := re.search(
    r'Required bindings for `([\w.]+)` not provided in config: (\[.*?\])', text
  ):
    return f'{required[1]} needs {required[2]} and nobody set it. Bind it in a gin file or with --gin_bindings.'
  if "doesn't have a parameter named" in text or 'has no field' in text:
    return f'{text}\nCheck the spelling against the function that is named.'
  if 'No configurable matching' in text or 'was not provided by an import' in text:
    return f'{text}\nNone of the gin files given imports it: add one that does, e.g. of experiments/models.'
  return text


# --- commands ---------------------------------------------------------------------------------------


def methods(args: argparse.Namespace) -> None:
  from opd_jax.methods import discover

  found = discover()
  if args.json:
    print(
      json.dumps(
        [{'name': m.name, 'summary': m.summary, 'paper': m.paper} for m in found], indent=2
      )
    )
  elif found:
    console.table(
      ('method', 'what it does', 'paper'), [(m.name, m.summary, m.paper) for m in found]
    )
  else:
    print('No methods yet: each is a file in opd_jax/methods with a function of the same name.')


def certify(args: argparse.Namespace) -> int:
  from opd_jax.commands.certify import certify

  return 0 if certify(args.names, everything=args.all, as_json=args.json) else 1


def convert(args: argparse.Namespace) -> None:
  import jax

  jax.config.update(
    'jax_platforms', 'cpu'
  )  # host work: a model need not fit an accelerator to be converted
  from opd_jax.sharding import mesh_layout
  from opd_jax.storage import huggingface, orbax_folder

  layout, destination, started = mesh_layout(), Path(args.dst), time.monotonic()
  if destination.exists() and (not destination.is_dir() or any(destination.iterdir())):
    raise Refusal(
      f'{destination} exists and is not an empty folder. Choose another DST or remove it.'
    )
  source = huggingface.folder_of(args.src)
  outwards = orbax_folder.is_native(source)
  if outwards:
    config, params = orbax_folder.load(source, layout)
    with console.progress_bar('writing') as progress:
      huggingface.save(
        destination, config, layout, params, companions=source, dtype=args.dtype, progress=progress
      )
  else:
    with console.progress_bar('reading') as progress:
      config, params = huggingface.load(source, layout, param_dtype=args.dtype, progress=progress)
    print('writing …', file=sys.stderr)
    orbax_folder.save(destination, config, params, companions=source)
  count = sum(leaf.size for leaf in jax.tree.leaves(params))
  print(
    f'{destination}: {config.family}, {count:,} parameters in {args.dtype or config.param_dtype}, '
    f'{"a folder for transformers" if outwards else "our folder"}, {time.monotonic() - started:.1f} s'
  )


def plan(args: argparse.Namespace) -> None:
  import jax

  if args.devices is not None:
    if not 1 <= args.devices <= MOST_DEVICES:
      raise Refusal(f'--devices must be 1 to {MOST_DEVICES}, got {args.devices}.')
    jax.config.update('jax_platforms', 'cpu')
    jax.config.update('jax_num_cpu_devices', args.devices)
  from opd_jax.training import memory

  experiment, operative = build(args.gin_file, args.gin_bindings)
  what, where = memory.plan(experiment), memory.devices_of(experiment)
  held = {stage.name: memory.held(experiment, stage)._asdict() for stage in experiment.stages}
  if args.workdir:
    folder = Path(args.workdir)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / 'config.gin').write_text(operative)
  if args.json:
    told = {
      'model': dataclasses.asdict(experiment.model),
      'mesh': where,
      **what._asdict(),
      'stages': held,
    }
    print(json.dumps(told, indent=2))
    return
  model = experiment.model
  print(
    f'model    {model.family}, {model.num_layers} layers x {model.width}, {what.parameters:,} parameters'
  )
  print(f'layout   {where}')
  total, each = console.memory(what.bytes_total), console.memory(what.bytes_per_device)
  print(f'memory   {total} of {model.param_dtype} parameters, {each} on each device')
  for name, parts in held.items():
    print(f'stage    {name} holds {console.held(parts)}')
  rows = [(path, shape, console.memory(size)) for path, shape, size in what.largest]
  console.table(('largest parameters', 'on one device', 'bytes there'), rows)
  if args.workdir:
    print(f'wrote    {Path(args.workdir) / "config.gin"}')


def train(args: argparse.Namespace) -> None:
  import jax

  if args.coordinator is not None:
    jax.distributed.initialize(
      args.coordinator, num_processes=args.processes, process_id=args.process
    )
  from opd_jax import host
  from opd_jax.commands.train import train

  host.keep_memory()
  experiment, operative = build(args.gin_file, args.gin_bindings)
  train(experiment, operative, workdir=Path(args.workdir), skip_preflight=args.skip_preflight)


def demo(args: argparse.Namespace) -> None:
  from opd_jax import host
  from opd_jax.commands.demo import demo

  host.keep_memory()
  demo(Path(args.workdir), build)


def export(args: argparse.Namespace) -> None:
  from opd_jax.commands.train import STUDENT

  student = Path(args.src) / STUDENT
  if not student.is_dir():
    raise Refusal(
      f'{student} is not there: {args.src} is no --workdir of a finished `opd train`. Run the same command again to '
      'finish it.'
    )
  convert(argparse.Namespace(src=str(student), dst=args.dst, dtype=args.dtype))


def sample(args: argparse.Namespace) -> None:
  from opd_jax.commands.sample import rules, sample

  chosen = rules(temperature=args.temperature, top_k=args.top_k, top_p=args.top_p, min_p=args.min_p)
  sample(
    model=args.model, prompts=args.prompt, prompts_file=args.prompts, chat=args.chat,
    max_new_tokens=args.max_new_tokens, settings=chosen, samples=args.samples, seed=args.seed, slots=args.slots,
    dtype=args.dtype, as_json=args.json,
  )  # fmt: skip


def score(args: argparse.Namespace) -> None:
  from opd_jax.commands.score import score

  score(
    model=args.model,
    file=args.file,
    seed=args.seed,
    dtype=args.dtype,
    rows=args.rows,
    as_json=args.json,
  )


# --- flags ------------------------------------------------------------------------------------------


def seed(text: str) -> int:
  """A seed that fits a key."""
  if not text.isdigit() or int(text) >= 2**32:
    raise argparse.ArgumentTypeError(f'a seed is a whole number from 0 to {2**32 - 1}, got {text}')
  return int(text)


def parser() -> argparse.ArgumentParser:
  """All flags of all commands."""
  common = argparse.ArgumentParser(add_help=False)
  common.add_argument('--debug', action='store_true', help='show the traceback of a refusal')
  raw = argparse.RawDescriptionHelpFormatter
  top = argparse.ArgumentParser(
    prog='opd', description=DESCRIPTION, epilog=EPILOG, formatter_class=raw
  )
  top.add_argument('--version', action='version', version=f'opd_jax {opd_jax.__version__}')
  commands = top.add_subparsers(dest='command', metavar='COMMAND', required=True)

  def command(
    function: Callable[[argparse.Namespace], int | None], text: str
  ) -> argparse.ArgumentParser:
    made = commands.add_parser(function.__name__, help=text, description=text, parents=[common])
    made.set_defaults(run=function)
    return made

  def speaker(
    function: Callable[[argparse.Namespace], int | None], text: str
  ) -> argparse.ArgumentParser:
    made = command(function, text)
    made.add_argument(
      '--model', required=True, metavar='SRC', help='preset (random weights), folder, or hub id'
    )
    made.add_argument(
      '--dtype',
      choices=DTYPES,
      help='of parameters and activations; default: as the model is stored',
    )
    made.add_argument(
      '--seed', type=seed, default=0, help='of the samples, and of the weights of a preset'
    )
    made.add_argument('--json', action='store_true', help='one object a line')
    return made

  one = speaker(sample, 'write with a model')
  one.add_argument('--prompt', action='append', default=[], metavar='TEXT', help='may be repeated')
  one.add_argument(
    '--prompts', metavar='FILE.jsonl', help='rows of {"text"}, {"messages"} or {"tokens"}'
  )
  one.add_argument('--chat', action='store_true', help='send texts through the chat template')
  one.add_argument('--max_new_tokens', type=int, default=64, metavar='N')
  one.add_argument('--temperature', type=float, default=1.0, metavar='T', help='0 is greedy')
  one.add_argument('--top_k', type=int, metavar='K', help='draw from the K likeliest tokens')
  one.add_argument(
    '--top_p', type=float, metavar='P', help='draw from the likeliest tokens with mass P'
  )
  one.add_argument(
    '--min_p',
    type=float,
    metavar='P',
    help='draw from tokens at least P times as likely as the likeliest',
  )
  one.add_argument('--samples', type=int, default=1, metavar='N', help='responses to each prompt')
  one.add_argument(
    '--slots',
    type=int,
    default=64,
    metavar='N',
    help='rows in flight; changes speed and memory only',
  )

  one = speaker(score, 'log-prob and entropy of every token of what `opd sample --json` wrote')
  one.add_argument('file', nargs='?', metavar='FILE.jsonl', help='default: standard input')
  one.add_argument('--rows', type=int, default=8, metavar='N', help='rows per batch')

  one = command(
    convert, 'a published model folder into ours, or ours into a published one; SRC decides'
  )
  one.add_argument(
    'src', metavar='SRC', help='folder of safetensors, hub id, or one of our folders'
  )
  one.add_argument('dst', metavar='DST', help='folder to make')
  one.add_argument('--dtype', choices=DTYPES, help='type to store; default: as it is')

  def experimenter(
    function: Callable[[argparse.Namespace], int | None], text: str
  ) -> argparse.ArgumentParser:
    made = command(function, text)
    made.add_argument(
      '--gin_file', action='append', default=[], metavar='FILE', help='may be repeated'
    )
    made.add_argument(
      '--gin_bindings', action='append', default=[], metavar='NAME=VALUE', help='may be repeated'
    )
    return made

  one = experimenter(
    train, 'run an experiment; the same command goes on with one that was interrupted'
  )
  one.add_argument(
    '--workdir', required=True, metavar='DIR', help='metrics, checkpoints, samples, the student'
  )
  one.add_argument(
    '--skip_preflight', action='store_true', help='begin without looking at tokenizers and judges'
  )
  one.add_argument(
    '--coordinator', metavar='HOST:PORT', help='of process 0, where several processes make one run'
  )
  one.add_argument(
    '--processes', type=int, metavar='N', help='how many; default: what the cluster says'
  )
  one.add_argument('--process', type=int, metavar='I', help='which of them this is')

  one = command(
    demo,
    'a teacher, a weak student, OPD and AOPD on sums, a table and a picture: minutes on two cores',
  )
  one.add_argument('--workdir', default='runs/demo', metavar='DIR', help='default: runs/demo')

  one = command(export, 'the student of a finished run, as a folder for transformers')
  one.add_argument('src', metavar='WORKDIR', help='of `opd train`')
  one.add_argument('dst', metavar='DST', help='folder to make')
  one.add_argument('--dtype', choices=DTYPES, help='type to store; default: as it is')

  one = experimenter(plan, 'what an experiment would put on each device; allocates nothing')
  one.add_argument(
    '--workdir', metavar='DIR', help='write the configuration in force to DIR/config.gin'
  )
  one.add_argument('--devices', type=int, metavar='N', help='plan as if N devices were here')
  one.add_argument('--json', action='store_true', help='for programs')

  one = command(
    certify,
    'bias, variance and fixed point of a gradient, by enumeration; exit status 1 when a claim fails',
  )
  one.add_argument(
    'names', nargs='*', metavar='NAME', help='a method, "METHOD, VARIANT", an estimator or a term'
  )
  one.add_argument(
    '--all',
    action='store_true',
    help='every method, estimator and term, also those known to be bad',
  )
  one.add_argument('--json', action='store_true', help='for programs')

  one = command(methods, 'the table of methods')
  one.add_argument('--json', action='store_true', help='for programs')
  return top


def main(argv: Sequence[str] | None = None) -> int:
  """Runs one command; 0 done, 2 refused."""
  args = parser().parse_args(argv)
  logging.getLogger('absl').setLevel(logging.WARNING)
  try:
    return args.run(args) or 0
  except (ValueError, OSError) as error:
    if args.debug:
      traceback.print_exc()
    print(f'opd {args.command}: {error}', file=sys.stderr)
    return 2
  except KeyboardInterrupt:
    print(f'opd {args.command}: stopped', file=sys.stderr)
    return 130


if __name__ == '__main__':
  sys.exit(main())
