"""Floor 6. `opd evaluate`: asks a model the problems of one or several benchmarks."""

import argparse
import json
from pathlib import Path
from typing import Any

from opd_jax.commands import console, flags

HELP = 'ask a model the problems of benchmarks: avg@k with its interval, pass@k, lengths, outcomes'
EPILOG = """\
  opd evaluate Qwen/Qwen3-0.6B --gin_file experiments/evaluations/aime24.gin --workdir runs/aime
  opd evaluate runs/opd --gin_file experiments/evaluations/math500.gin \\
      --gin_bindings 'evaluator.Evaluation.samples = 1' --workdir runs/math

MODEL is a folder, a hub id, or the --workdir of a run, whose student is taken. Each --gin_file is a benchmark, and the
bindings hold for all of them. outcomes.jsonl in the --workdir has a line for every response; the same command goes on
where it was cut off, with the same responses.
"""
RECORD, OUTCOMES = 'evaluate.json', 'outcomes.jsonl'
HEAD = (
  'benchmark', 'problems', 'avg', '95 % interval', 'pass', 'length', 'truncated', 'unparsed', 'timed out',
)  # fmt: skip


def add_flags(parser: argparse.ArgumentParser) -> None:
  parser.add_argument('model', metavar='MODEL', help='folder, hub id, or workdir of a run')
  flags.add_gin(parser)
  add = parser.add_argument
  add('--workdir', required=True, metavar='DIR', help='where outcomes.jsonl is written')
  add('--seed', type=flags.seed, default=0, help='of the samples')
  add('--dtype', choices=flags.DTYPES, help='of parameters and activations; default: as stored')


def run(args: argparse.Namespace) -> None:
  from opd_jax.commands.loading import with_tokenizer
  from opd_jax.inference import sampler
  from opd_jax.training.workdir import locked

  evaluations, config = _evaluations(args.gin_file, args.gin_bindings)
  name = _model_of(args.model)
  root = Path(args.workdir)
  root.mkdir(parents=True, exist_ok=True)
  with locked(root):
    _claim(root, {'model': name, 'seed': args.seed, 'dtype': args.dtype, 'config': config})
    loaded, tokenizer, layout = with_tokenizer(name, seed=0, dtype=args.dtype)
    if tokenizer is None:
      raise ValueError(
        f'evaluate: {name} has no tokenizer. Put its tokenizer.json beside the weights.'
      )
    model = sampler.unrolled(sampler.Model(loaded.config, layout, loaded.params))
    rows = [_asked(each, model, tokenizer, root, args.seed) for each in evaluations]
  console.table(HEAD, rows)


def _evaluations(files: list[str], bindings: list[str]) -> tuple[list[Any], list[str]]:
  """The evaluations of all files, and the configurations that were in force."""
  from opd_jax.configuration import record_of
  from opd_jax.evaluation.evaluator import Suite

  if not files:
    raise ValueError(
      'evaluate: name at least one --gin_file, e.g. experiments/evaluations/aime24.gin.'
    )
  built = [record_of(Suite, [file], bindings) for file in files]
  evaluations = [each for suite, _ in built for each in suite.evaluations]
  names = [each.label for each in evaluations]
  if twice := sorted({name for name in names if names.count(name) > 1}):
    raise ValueError(f'evaluate: two evaluations are called {", ".join(twice)}. Bind their `name`.')
  return evaluations, [config for _, config in built]


def _model_of(name: str) -> str:
  """The student of a run, where the name is its workdir."""
  folder = Path(name)
  if (folder / 'metrics.jsonl').is_file():
    if not (folder / 'student').is_dir():
      raise ValueError(f'evaluate: the run of {folder} has not finished: it has no student.')
    return str(folder / 'student')
  return name


def _claim(root: Path, record: dict[str, Any]) -> None:
  """Refuses outcomes of another model, seed or configuration."""
  from opd_jax.storage.atomic_folder import write_whole

  file = root / RECORD
  if file.is_file():
    before = json.loads(file.read_text())
    if unlike := [key for key in record if before.get(key) != record[key]]:
      raise ValueError(
        f'evaluate: {root} holds outcomes of another {", ".join(unlike)}. Choose another --workdir.'
      )
  write_whole(file, json.dumps(record, indent=1) + '\n')


def _asked(evaluation: Any, model: Any, tokenizer: Any, root: Path, seed: int) -> tuple[Any, ...]:
  """Asks what has not been asked yet, and returns the row of the table."""
  import jax

  from opd_jax.evaluation.evaluator import Evaluator
  from opd_jax.training import recorder

  evaluator = Evaluator(evaluation, tokenizer, jax.random.key(seed))
  count, samples = len(evaluator.problems), evaluation.samples
  step = max(1, 4 * evaluation.slots // samples)
  kept = _whole(root / OUTCOMES, evaluation.label, part=step * samples, total=count * samples)
  with console.progress_bar(evaluation.label) as bar:
    for begin in range(0, count, step):
      end = min(begin + step, count)
      if len(kept) < end * samples:
        responses = evaluator.sample(model, begin, end)
        new = evaluator.outcomes(responses, step=0, seed=seed)
        recorder.append(root / OUTCOMES, new)
        kept += new
      bar(end, count, _so_far(kept))
  return _row(evaluation, kept)


def _whole(file: Path, label: str, *, part: int, total: int) -> list[dict[str, Any]]:
  """The outcomes of an evaluation in whole parts. What was cut within a part leaves the file: it is asked again."""
  from opd_jax.storage.atomic_folder import write_whole
  from opd_jax.training import recorder

  if not file.is_file():
    return []
  own, others = [], []
  for pair in recorder.read_pairs(file):
    (own if pair[1]['evaluation'] == label else others).append(pair)
  if len(own) < total:
    own = own[: len(own) // part * part]
  write_whole(file, ''.join(line for line, _ in [*others, *own]))
  return [row for _, row in own]


def _so_far(rows: list[dict[str, Any]]) -> str:
  return f'{sum(row["outcome"] == "correct" for row in rows) / len(rows):.1%} correct'


def _row(evaluation: Any, rows: list[dict[str, Any]]) -> tuple[Any, ...]:
  import numpy as np

  from opd_jax.evaluation import pass_at_k

  samples = evaluation.samples
  right = np.array([row['outcome'] == 'correct' for row in rows]).reshape(-1, samples)
  low, high = pass_at_k.interval(right.mean(axis=1))
  passed = pass_at_k.pass_at_k(samples, right.sum(axis=1), samples).mean()
  part = lambda key, *values: f'{sum(row[key] in values for row in rows) / len(rows):.1%}'
  return (
    evaluation.label,
    len(right),
    f'@{samples} {right.mean():.1%}',
    f'{low:.1%} to {high:.1%}',
    f'@{samples} {passed:.1%}',
    f'{sum(row["length"] for row in rows) / len(rows):.0f}',
    part('ended_by', 'budget', 'context'),
    part('outcome', 'unparsed'),
    part('outcome', 'timed out'),
  )
