"""Floor 6. `opd distil`: an experiment from a few flags. It is written as a gin file, and that file is what runs."""

import argparse
import hashlib
import shlex
import sys
from pathlib import Path
from typing import Any

from opd_jax.commands import check, flags, train

HELP = 'distil a teacher into a student on your own problems; writes the experiment as a gin file and runs it'
EPILOG = """\
  opd distil --student Qwen/Qwen3-0.6B --teacher Qwen/Qwen3-1.7B --data problems.jsonl --verifier last_number \\
             --method aopd --workdir runs/mine

The same command resumes. Everything else that an experiment can be told stands in DIR/experiment.gin, where to go on:
  opd train --gin_file DIR/experiment.gin --gin_bindings 'RATE = 3e-5' --workdir DIR-2
"""
FILE = 'experiment.gin'
VERIFIERS = {
  'exact': 'texts.exact',
  'last_number': 'texts.last_number',
  'choice': 'texts.choice',
  'json_fields': 'texts.json_fields()',
  'code_block': 'texts.code_block',
  'integers': 'integers.integers',
  'maths': 'maths.maths',
}
MODULES = (  # whatever a binding may name
  *('.data import problems', '.data import sources', '.data import tokenizers'),
  '.evaluation import evaluator',
  *(f'.evaluation.graders import {name}' for name in ('integers', 'maths', 'texts')),
  *('.methods import sft', '.storage import load', '.training import experiment'),
)
LAYOUTS = 'fsdp', 'tensor', 'fsdp_tensor', 'fsdp_tensor_writing', 'pod', 'context', 'experts'
MOST_EVALUATED = 128
BEGUN = 'checkpoints', 'metrics.jsonl'  # in a workdir: a run has begun there
SEAL = '# Unchanged: '


def add_flags(parser: argparse.ArgumentParser) -> None:
  add = parser.add_argument
  add('--student', required=True, metavar='SRC', help='folder, hub id or preset (random weights)')
  add(
    '--teacher',
    metavar='SRC',
    help='folder, hub id, preset, or http://… of a server; sft needs none',
  )
  add('--teacher_is', choices=('int8', 'foreign'), help='in 8 bits; of another tokenizer')
  add('--data', required=True, metavar='FILE|ID', help='JSON lines, or a data set of the hub')
  add('--workdir', required=True, metavar='DIR', help='the experiment, metrics, the student')
  add('--method', default='opd', metavar='NAME', help='see `opd methods`; opd')
  add('--question', default='problem', metavar='COLUMN', help='of the data; problem')
  add('--answer', metavar='COLUMN', help='that a verifier compares with; answer, where it exists')
  add('--demonstration', metavar='COLUMN', help='responses to imitate, for --warmup and sft')
  add('--verifier', choices=VERIFIERS, help='gives rewards and accuracies; none')
  add('--steps', type=flags.count, default=100, metavar='N', help='of the method; 100')
  add('--warmup', type=flags.count, metavar='N', help='steps of SFT on the demonstrations before')
  add('--prompts', type=flags.count, default=32, metavar='N', help='of a batch; 32')
  add('--samples', type=flags.count, default=1, metavar='N', help='responses to a prompt; 1')
  add('--budget', type=flags.count, default=512, metavar='N', help='tokens of a response; 512')
  add('--rate', type=flags.positive, default=1e-5, metavar='X', help='learning rate; 1e-5')
  add('--held_out', type=flags.positive, default=0.1, metavar='X', help='part evaluated; 0.1')
  add('--every', type=flags.count, default=20, metavar='N', help='steps between evaluations; 20')
  add('--microbatches', type=flags.count, default=1, metavar='N', help='passes of an update; 1')
  add('--layout', choices=LAYOUTS, help='over all devices; default: one device')
  add('--dtype', choices=('float32', 'bfloat16'), help='computed in; float32 on CPUs')
  add('--seed', type=flags.seed, default=0, help='of everything random; 0')
  add('--dry_run', action='store_true', help='write the experiment and check it; train nothing')
  flags.add_processes(parser)


def run(args: argparse.Namespace) -> int:
  flags.join(args)
  from opd_jax import host
  from opd_jax.configuration import build
  from opd_jax.processes import first_does
  from opd_jax.storage import places
  from opd_jax.training import workdir

  host.keep_memory()
  folder = places.here_only(args.workdir, '--workdir of distil')
  text = text_of(args)
  workdir.prepare(folder, command='distil')
  first_does(lambda: _write(folder / FILE, text))
  experiment, operative = build([str(folder / FILE)], [])
  print(f'--- {folder / FILE}\n{text}---')
  if args.dry_run:
    check.look(experiment, folder)
    print(train.header(experiment, skip_preflight=False))
    print(f'go on with: opd train --gin_file {folder / FILE} --workdir {args.workdir}')
    return 0
  return train.train(experiment, operative, workdir=folder)


def _write(file: Path, text: str) -> None:
  """Refuses to replace an experiment that has begun, or that somebody has changed."""
  before = _read(file) if file.exists() else text
  begun = any((file.parent / name).exists() for name in BEGUN) or SEAL + _seal(before) not in before
  if begun and _settings(before) != _settings(text):
    raise ValueError(
      f'{file} holds another experiment. Run it as it is: opd train --gin_file {file} --workdir {file.parent}; or '
      'choose another --workdir.'
    )
  file.write_text(f'{SEAL}{_seal(text)}\n{text}')


def _read(file: Path) -> str:
  try:
    return file.read_text()
  except (OSError, UnicodeDecodeError) as error:
    raise ValueError(
      f'{file} is there and is no text that can be read ({error}). Move it away.'
    ) from error


def _seal(text: str) -> str:
  """What tells a file that was written here from one that was changed since."""
  return hashlib.sha256('\n'.join(_settings(text)).encode()).hexdigest()[:12]


def _settings(text: str) -> list[str]:
  return [line for line in text.splitlines() if not line.startswith('#')]


def text_of(args: argparse.Namespace) -> str:
  """The experiment that the flags mean."""
  from opd_jax.methods import discover, named

  _check(args, named(args.method, discover()).make())
  rows = _rows(args)
  first = _first(rows)
  answer = args.answer or ('answer' if 'answer' in first else None)
  for flag, column in (
    ('question', args.question),
    ('answer', answer),
    ('demonstration', args.demonstration),
  ):
    if column is not None and column not in first:
      raise ValueError(
        f'{args.data} has no column {column!r}; it has {", ".join(map(repr, first))}. Name one with --{flag}.'
      )
  if args.verifier is not None and answer is None:
    raise ValueError(
      f'--verifier {args.verifier} compares with an answer. Name its column: --answer.'
    )
  return '\n'.join([*_head(args), *_includes(args), '', *_bindings(args, answer, rows)]) + '\n'


def _check(args: argparse.Namespace, method: Any) -> None:
  """Refuses flags that go without another, or say nothing."""
  from opd_jax.method_reads import judges_read

  for flag in ('student', 'teacher', 'data', 'workdir'):
    if getattr(args, flag) == '':
      raise ValueError(f'--{flag} is an empty text. Name a folder or a file.')
  imitates = '--warmup' if args.warmup is not None else ''
  imitates = f'--method {args.method}' if method.rollout.needs_data else imitates
  if imitates and args.demonstration is None:
    raise ValueError(
      f'{imitates} imitates responses of the data. Name their column: --demonstration.'
    )
  asks = judges_read(method) - {'student'} or method.rollout.needs_teacher
  if asks and args.teacher is None:
    raise ValueError(
      f'--method {args.method} asks a teacher. Name a folder, hub id or server: --teacher.'
    )
  if args.teacher is None and args.teacher_is is not None:
    raise ValueError(f'--teacher_is {args.teacher_is} is said of a teacher. Name it: --teacher.')
  if args.teacher is not None and not asks:
    raise ValueError(f'--method {args.method} asks no teacher. Leave --teacher out.')


def _first(rows: Any) -> Any:
  """The first row, or where it is and what is wrong with it."""
  try:
    return rows[0]
  except ValueError as error:
    raise ValueError(f'{rows.name(0)}: {error}') from error


def _rows(args: argparse.Namespace) -> Any:
  """The data, counted."""
  from opd_jax.data import sources

  if not 0 < args.held_out < 1:
    raise ValueError(f'--held_out must lie between 0 and 1, got {args.held_out}.')
  if Path(args.data).expanduser().is_file():
    return sources.json_lines(_source(args.data))
  is_path = args.data.startswith(('.', '/', '~')) or args.data.endswith(('.jsonl', '.json'))
  if is_path or args.data.count('/') != 1:
    raise ValueError(f'--data {args.data} is no file here, and no id of a data set (owner/name).')
  return sources.hub(args.data)


def _source(name: str) -> str:
  """A path as it is found from everywhere; other names as they are."""
  path = Path(name).expanduser()
  return str(path.resolve()) if path.exists() else name


def _head(args: argparse.Namespace) -> list[str]:
  command = ' '.join(map(shlex.quote, sys.argv[1:])) if sys.argv[0].endswith('opd') else 'distil …'
  return [
    f'# Written by: opd {command}',
    f'# Run by:     opd train --gin_file {Path(args.workdir) / FILE} --workdir {args.workdir}',
    'from __gin__ import dynamic_registration',
    *(f'from opd_jax{module}' for module in MODULES),
  ]


def _includes(args: argparse.Namespace) -> list[str]:
  files = ['models/folder', 'data/jsonl', f'methods/{args.method}']
  files += [f'judges/{_judge(args)}'] if args.teacher is not None else []
  files += [f'layouts/{args.layout}'] if args.layout is not None else []
  return [f"include 'experiments/{file}.gin'" for file in files]


def _bindings(args: argparse.Namespace, answer: str | None, rows: Any) -> list[str]:
  from opd_jax.data import sources

  held_out = len(sources.part(rows, held_out=True, fraction=args.held_out))
  lines = [
    f'WEIGHTS = {_source(args.student)!r}',
    *_teacher(args),
    f'DATA = {_source(args.data)!r}',
    *_data(args, answer),
    f'STEPS = {args.steps}',
    f'PROMPTS = {args.prompts}',
    f'SAMPLES = {args.samples}',
    f'BUDGET = {args.budget}',
    f'RATE = {args.rate!r}',
    f'load.config.dtype = {args.dtype or _dtype()!r}',
    f'sources.part.fraction = {args.held_out!r}',
    f'evaluator.Evaluation.problems = {min(held_out, MOST_EVALUATED)}',
    f'evaluator.Evaluation.every = {args.every}',
    f'experiment.Stage.microbatches = {args.microbatches}',
    f'experiment.Experiment.seed = {args.seed}',
  ]
  if args.warmup is not None:
    lines += [
      'experiment.Experiment.stages = [@warm/experiment.Stage(), @experiment.Stage()]',
      "warm/experiment.Stage.name = 'warm'",
      'warm/experiment.Stage.method = @sft.sft()',
      f'warm/experiment.Stage.steps = {args.warmup}',
    ]
  return lines


def _judge(args: argparse.Namespace) -> str:
  """The file of experiments/judges that says what the teacher is."""
  if not args.teacher.lower().startswith(('http://', 'https://')):
    return {None: 'teacher', 'int8': 'teacher_int8', 'foreign': 'foreign'}[args.teacher_is]
  if args.teacher_is is not None:
    raise ValueError(
      f'--teacher_is {args.teacher_is} is said of weights; {args.teacher} has its own.'
    )
  return 'served'


def _teacher(args: argparse.Namespace) -> list[str]:
  if args.teacher is None:
    return []
  if _judge(args) == 'served':
    scheme, _, rest = args.teacher.partition('://')
    return [f'URL = {scheme.lower() + "://" + rest!r}']
  return [f'TEACHER = {_source(args.teacher)!r}']


def _data(args: argparse.Namespace, answer: str | None) -> list[str]:
  from opd_jax.storage import load

  lines = [f'QUESTION = {args.question!r}', f'ANSWER = {answer!r}']
  if args.demonstration is not None:
    lines.append(f'DEMONSTRATION = {args.demonstration!r}')
  if args.verifier is not None:
    lines.append(f'VERIFIER = @{VERIFIERS[args.verifier]}')
  if not Path(args.data).expanduser().is_file():
    lines += ['SOURCE = @sources.hub()', 'sources.hub.name = %DATA']
  if load.is_preset(args.student):  # it has none of its own
    lines.append('TOKENIZER = @tokenizers.ByteTokenizer()')
  return lines


def _dtype() -> str:
  import jax

  return 'float32' if jax.default_backend() == 'cpu' else 'bfloat16'
