"""Floor 6. `opd evaluate`: asks a model the problems of one or several benchmarks."""

import argparse
import functools
import json
import re
from pathlib import Path
from typing import Any

from opd_jax.commands import console, flags

HELP = 'ask a model the problems of benchmarks: avg@k and pass@k with intervals, lengths, outcomes'
EPILOG = """\
  opd evaluate Qwen/Qwen3-0.6B --gin_file experiments/evaluations/aime24.gin --workdir runs/aime
  opd evaluate runs/opd --gin_file experiments/evaluations/math500.gin \\
      --gin_bindings 'evaluator.Evaluation.samples = 1' --workdir runs/math

MODEL is a folder, a hub id, or the --workdir of a run, whose student is taken. Each --gin_file is a benchmark, and the
bindings hold for all of them. outcomes.jsonl in the --workdir has a line for every response, results.json the table;
the same command goes on where it was cut off, with the same responses. Every device has a copy of the model.
"""
RECORD, OUTCOMES, RESULTS = 'evaluate.json', 'outcomes.jsonl', 'results.json'
KS = re.compile(
  r'^\S*Evaluation\.ks = (?:\\\n)?.*\n', flags=re.MULTILINE
)  # of a table, not of responses
SHARES = 'truncated', 'unparsed', 'timed_out', 'disagreed'
HEAD = (
  'benchmark', 'problems', 'measure', 'mean', '95 % interval', 'length', 'truncated', 'unparsed', 'timed out',
  'disagreed',
)  # fmt: skip


def add_flags(parser: argparse.ArgumentParser) -> None:
  parser.add_argument('model', metavar='MODEL', help='folder, hub id, or workdir of a run')
  flags.add_gin(parser)
  add = parser.add_argument
  add('--workdir', required=True, metavar='DIR', help='where outcomes.jsonl is written')
  add('--seed', type=flags.seed, default=0, help='of the samples')
  add('--dtype', choices=flags.DTYPES, help='of parameters and activations; default: as stored')
  flags.add_processes(parser)


def run(args: argparse.Namespace) -> None:
  flags.join(args)
  import jax

  from opd_jax.commands.loading import with_tokenizer
  from opd_jax.evaluation.evaluator import Evaluator
  from opd_jax.inference import sampler
  from opd_jax.processes import first_does
  from opd_jax.storage.places import place, spooled
  from opd_jax.training.workdir import locked, prepare

  evaluations, config = _evaluations(args.gin_file, args.gin_bindings, flags.trust_of(args))
  for each in evaluations:
    _ = each.chosen  # what cannot be read is said before a model is loaded
  name, home = _model_of(args.model), place(args.workdir)
  prepare(home, command='evaluate')
  kept = (RECORD, OUTCOMES) if jax.process_index() == 0 else ()
  with locked(home, command='evaluate', say=print), spooled(home, kept) as spool:
    record = {'model': name, 'seed': args.seed, 'dtype': args.dtype, 'config': config}
    first_does(lambda: _claim(spool, record))
    loaded, tokenizer, layout = with_tokenizer(name, seed=0, dtype=args.dtype, everywhere=True)
    if tokenizer is None:
      raise ValueError(
        f'evaluate: {name} has no tokenizer. Put its tokenizer.json beside the weights.'
      )
    model = sampler.unrolled(sampler.Model(loaded.config, layout, loaded.params))
    key = jax.random.key(args.seed)
    evaluators = [Evaluator(each, tokenizer, key) for each in evaluations]
    for evaluator in evaluators:
      evaluator.evaluation.check_room(tokenizer, loaded.config.max_positions)
    rows = {each.evaluation.label: _asked(each, model, spool, args.seed) for each in evaluators}
    first_does(lambda: _tell(evaluations, rows, spool.folder))


def _evaluations(files: list[str], bindings: list[str], trust: Any) -> tuple[list[Any], list[str]]:
  """The evaluations of all files, and the configurations that were in force."""
  from opd_jax.configuration import record_of
  from opd_jax.evaluation.evaluator import Suite

  if not files:
    raise ValueError(
      'evaluate: name at least one --gin_file, e.g. experiments/evaluations/aime24.gin.'
    )
  built = [record_of(Suite, [file], bindings, trust) for file in files]
  evaluations = [each for suite, _ in built for each in suite.evaluations]
  names = [each.label for each in evaluations]
  if drafts := [each.label for each in evaluations if each.draft_of_teacher]:
    raise ValueError(
      f'evaluate: {drafts[0]} has draft_of_teacher, and no teacher is here. Set it to 0; opd sample --draft compares '
      'two models.'
    )
  if twice := sorted({name for name in names if names.count(name) > 1}):
    raise ValueError(f'evaluate: two evaluations are called {", ".join(twice)}. Bind their `name`.')
  return evaluations, [KS.sub('', config) for _, config in built]


def _model_of(name: str) -> str:
  """The student of a run, where the name is its workdir."""
  from opd_jax.storage.places import place

  folder = place(name)
  if (folder / 'metrics.jsonl').is_file():
    if not (folder / 'student').is_dir():
      raise ValueError(f'evaluate: the run of {folder} has not finished: it has no student.')
    return str(folder / 'student')
  return name


def _claim(spool: Any, record: dict[str, Any]) -> None:
  """Refuses outcomes of another model, seed or configuration."""
  from opd_jax.storage.places import write_whole

  file = spool.folder / RECORD
  if file.is_file():
    before = json.loads(file.read_text())
    if unlike := [key for key in record if before.get(key) != record[key]]:
      raise ValueError(
        f'evaluate: {spool.home} holds outcomes of another {", ".join(unlike)}. Choose another --workdir.'
      )
  write_whole(file, json.dumps(record, indent=1) + '\n')


def _asked(evaluator: Any, model: Any, spool: Any, seed: int) -> list[dict[str, Any]]:
  """Asks what has not been asked yet, and returns all outcomes; those of the first process, which writes them."""
  import jax

  from opd_jax.processes import agreed, first_does
  from opd_jax.training import recorder

  evaluation = evaluator.evaluation
  count, samples, file = len(evaluator.problems), evaluation.samples, spool.folder / OUTCOMES
  step = max(1, 4 * evaluation.slots // samples)
  part, total = step * samples, count * samples
  kept = first_does(lambda: _whole(file, evaluation.label, part=part, total=total)) or []
  done = agreed(len(kept))
  with console.progress_bar(evaluation.label) as bar:
    for begin in range(0, count, step):
      end = min(begin + step, count)
      if done < end * samples:
        responses = evaluator.sample(model, begin, end)
        new = evaluator.outcomes(responses, step=0, seed=seed)
        first_does(functools.partial(recorder.append, file, new))
        spool.send()
        kept += new
      if jax.process_index() == 0:
        bar(end, count, _so_far(kept))
  return kept


def _whole(file: Path, label: str, *, part: int, total: int) -> list[dict[str, Any]]:
  """The outcomes of an evaluation in whole parts. What was cut within a part leaves the file: it is asked again."""
  from opd_jax.storage.places import write_whole
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


def _tell(evaluations: list[Any], rows: dict[str, list[dict[str, Any]]], root: Path) -> None:
  """Prints the table, and writes it as numbers."""
  from opd_jax.storage.places import write_whole

  results = {each.label: _result(each, rows[each.label]) for each in evaluations}
  write_whole(root / RESULTS, json.dumps(results, indent=1) + '\n')
  console.table(HEAD, [_row(name, result) for name, result in results.items()])


def _result(evaluation: Any, rows: list[dict[str, Any]]) -> dict[str, Any]:
  """What results.json says of an evaluation: means with their intervals over problems, and shares of all responses."""
  import math

  from opd_jax.evaluation import summary
  from opd_jax.evaluation.pass_at_k import interval

  samples = evaluation.samples
  known = lambda value: value if math.isfinite(value) else None
  measures = {
    name: {'mean': float(values.mean()), 'interval': [*map(known, interval(values))]}
    for name, values in summary.by_problem(rows, samples=samples, ks=evaluation.counts).items()
  }
  shared = summary.shares(rows)
  return {'problems': len(rows) // samples, 'samples': samples, 'measures': measures, **shared}


def _row(name: str, result: dict[str, Any]) -> tuple[Any, ...]:
  """A row of the table; a measure has a line of its own in it."""
  measures = result['measures']
  between = lambda low, high: '–' if low is None else f'{low:.1%} to {high:.1%}'
  share = lambda key: f'{result[key]:.1%}' if key in result else '–'
  return (
    name,
    result['problems'],
    '\n'.join(measures),
    '\n'.join(f'{each["mean"]:.1%}' for each in measures.values()),
    '\n'.join(between(*each['interval']) for each in measures.values()),
    f'{result["length"]:.0f}',
    *map(share, SHARES),
  )
