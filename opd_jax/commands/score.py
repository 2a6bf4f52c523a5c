"""Floor 6. `opd score`: what a model thinks of every token that was written."""

import json
import math
import sys
import time

from opd_jax import console
from opd_jax.commands.loading import with_tokenizer
from opd_jax.data.prompts import read_rows, token_list
from opd_jax.inference import scorer
from opd_jax.inference.scorer import Needs


def score(
  *, model: str, file: str | None, seed: int, dtype: str | None, rows: int, as_json: bool
) -> None:
  """Reads objects with `prompt_tokens` and `tokens` (as `opd sample --json` prints them) and scores each token."""
  if rows < 1:
    raise ValueError(f'score: --rows must be at least 1, got {rows}.')
  name = file or 'standard input'
  if file is None:
    records = list(read_rows(sys.stdin, name=name))
  else:
    with open(file) as stream:
      records = list(read_rows(stream, name=name))
  if not records:
    raise ValueError(
      f'score: {name} holds no rows. Each line is an object with "prompt_tokens" and "tokens".'
    )
  loaded, _, layout = with_tokenizer(model, seed=seed, dtype=dtype)
  size = loaded.config.vocab_size
  pairs = [
    [
      token_list(row, key, name=f'{name}, line {number}', vocab_size=size)
      for key in ('prompt_tokens', 'tokens')
    ]
    for number, row in records
  ]
  for (number, _), (prompt, response) in zip(records, pairs, strict=True):
    scorer.check_row(prompt, response, name=f'{name}, line {number}:', config=loaded.config)
  started, part = time.monotonic(), 32 * rows
  with console.progress_bar('scoring') as bar:
    for begin in range(0, len(pairs), part):
      prompts, responses = zip(*pairs[begin : begin + part], strict=True)
      found = scorer.score_rows(
        loaded.params,
        prompts,
        responses,
        config=loaded.config,
        layout=layout,
        needs=Needs(entropy=True),
        rows=rows,
      )
      for (_, record), scores in zip(records[begin : begin + part], found, strict=True):
        _print(record, scores, as_json=as_json)
      bar(min(begin + part, len(pairs)), len(pairs), '')
  tokens = sum(len(response) for _, response in pairs)
  seconds = time.monotonic() - started
  print(
    f'{tokens} tokens in {seconds:.2f} s, {tokens / seconds:,.0f} tokens/s with compilation',
    file=sys.stderr,
  )


def _print(record, scores, *, as_json: bool) -> None:
  if as_json:
    print(
      json.dumps(
        {**record, 'score_logps': scores.logp.tolist(), 'entropies': scores.entropy.tolist()}
      ),
      flush=True,
    )
    return
  count = max(len(scores.logp), 1)
  mean = float(scores.logp.sum()) / count
  print(
    f'row {record.get("row", "?")}: {len(scores.logp)} tokens, mean log-prob {mean:.4f}, perplexity '
    f'{math.exp(-mean):.3f}, mean entropy {float(scores.entropy.sum()) / count:.4f}'
  )
