"""Floor 6. `opd score`: log-probability and entropy of every token of given responses, under a model."""

import argparse
import json
import math
import sys
import time
from pathlib import Path
from typing import Any

from opd_jax.commands import console, flags

HELP = 'log-prob and entropy of every token of what `opd sample --json` wrote'
EPILOG = '  opd score --model models/qwen3-0.6b --json written.jsonl\n'
BATCHES = 32  # scored between two prints


def add_flags(parser: argparse.ArgumentParser) -> None:
  flags.add_model(parser)
  parser.add_argument('file', nargs='?', metavar='FILE.jsonl', help='default: standard input')
  parser.add_argument('--rows', type=int, default=8, metavar='N', help='rows per batch')


def run(args: argparse.Namespace) -> None:
  """Reads objects with `prompt_tokens` and `tokens` (as `opd sample --json` prints them) and scores each token."""
  from opd_jax.commands.loading import with_tokenizer
  from opd_jax.inference import scorer
  from opd_jax.types import ScoreRequest

  if args.rows < 1:
    raise ValueError(f'score: --rows must be at least 1, got {args.rows}.')
  name = args.file or 'standard input'
  records = _read(args.file, name)
  loaded, _, layout = with_tokenizer(args.model, seed=args.seed, dtype=args.dtype)
  pairs = _token_pairs(records, name, loaded.config)
  started, part = time.monotonic(), BATCHES * args.rows
  with console.progress_bar('scoring') as bar:
    for begin in range(0, len(pairs), part):
      prompts, responses = zip(*pairs[begin : begin + part], strict=True)
      scored = scorer.score_rows(
        loaded.params,
        prompts,
        responses,
        config=loaded.config,
        layout=layout,
        request=ScoreRequest(entropy=True),
        rows=args.rows,
      )
      for (_, record), scores in zip(records[begin : begin + part], scored, strict=True):
        _print(record, scores, as_json=args.json)
      bar(min(begin + part, len(pairs)), len(pairs), '')
  tokens = sum(len(response) for _, response in pairs)
  seconds = time.monotonic() - started
  print(
    f'{tokens} tokens in {seconds:.2f} s, {tokens / seconds:,.0f} tokens/s with compilation',
    file=sys.stderr,
  )


def _read(file: str | None, name: str) -> list[tuple[int, dict[str, Any]]]:
  from opd_jax.data.sources import read_rows

  if file is None:
    records = list(read_rows(sys.stdin, name=name))
  else:
    if not Path(file).is_file():
      raise ValueError(f'score: {file} is no file here.')
    with open(file) as stream:
      records = list(read_rows(stream, name=name))
  if not records:
    raise ValueError(
      f'score: {name} holds no rows. Each line is an object with "prompt_tokens" and "tokens".'
    )
  return records


def _token_pairs(
  records: list[tuple[int, dict[str, Any]]], name: str, config: Any
) -> list[tuple[list[int], list[int]]]:
  """Prompt and response of every record, checked against the model."""
  from opd_jax.data.prompts import token_list
  from opd_jax.inference import scorer

  pairs = []
  for number, record in records:
    prompt, response = (
      token_list(record, key, name=f'{name}, line {number}', vocab_size=config.vocab_size)
      for key in ('prompt_tokens', 'tokens')
    )
    scorer.check_row(prompt, response, name=f'{name}, line {number}:', config=config)
    pairs.append((prompt, response))
  return pairs


def _print(record: dict[str, Any], scores: Any, *, as_json: bool) -> None:
  if as_json:
    scored = {'score_logps': scores.logp.tolist(), 'entropies': scores.entropy.tolist()}
    print(json.dumps({**record, **scored}), flush=True)
    return
  count = max(len(scores.logp), 1)
  mean = float(scores.logp.sum()) / count
  print(
    f'row {record.get("row", "?")}: {len(scores.logp)} tokens, mean log-prob {mean:.4f}, perplexity '
    f'{math.exp(-mean):.3f}, mean entropy {float(scores.entropy.sum()) / count:.4f}'
  )
