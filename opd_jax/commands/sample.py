"""Floor 6. `opd sample`: samples responses from a model, with the log-probability of every token."""

import argparse
import json
import sys
import time
from collections.abc import Sequence
from typing import Any

from opd_jax.commands import console, drafting, flags

HELP = 'write with a model'
EPILOG = """\
  opd sample --model tiny --prompt 'Hello' --samples 4 --json
  opd sample --model models/qwen3-0.6b --prompts questions.jsonl --temperature 0.7 --top_p 0.95
  opd sample --model models/qwen3-8b --draft models/qwen3-0.6b --prompt 'Hello' --compare
"""


def add_flags(parser: argparse.ArgumentParser) -> None:
  flags.add_model(parser)
  add = parser.add_argument
  add('--prompt', action='append', default=[], metavar='TEXT', help='may be repeated')
  add('--prompts', metavar='FILE.jsonl', help='rows of {"text"}, {"messages"} or {"tokens"}')
  add('--chat', action='store_true', help='send texts through the chat template')
  add('--max_new_tokens', type=int, default=64, metavar='N', help='default: 64')
  add('--temperature', type=float, default=1.0, metavar='T', help='0 is greedy')
  add('--top_k', type=int, metavar='K', help='draw from the K likeliest tokens')
  add('--top_p', type=float, metavar='P', help='draw from the likeliest tokens with mass P')
  add(
    '--min_p', type=float, metavar='P', help='draw from tokens of P times the highest probability'
  )
  add('--samples', type=int, default=1, metavar='N', help='responses to each prompt')
  add('--slots', type=int, default=64, metavar='N', help='rows in flight: speed and memory only')
  drafting.add_draft_flags(parser)


def run(args: argparse.Namespace) -> None:
  """Samples and prints every response when it ends; prints a single one token by token."""
  from opd_jax.commands.loading import with_tokenizer
  from opd_jax.data.prompts import tokens_of
  from opd_jax.inference.decoding import usual_rules

  chosen = usual_rules(
    temperature=args.temperature,
    top_k=args.top_k,
    top_p=args.top_p,
    min_p=args.min_p,
  )
  if args.samples < 1:
    raise ValueError(f'sample: --samples must be at least 1, got {args.samples}.')
  prompts = read_prompts(args.prompt, args.prompts, chat=args.chat)
  loaded, tokenizer, layout = with_tokenizer(args.model, seed=args.seed, dtype=args.dtype)
  rows = [
    tokens_of(row, tokenizer, name=name, vocab_size=loaded.config.vocab_size)
    for name, row in prompts
    for _ in range(args.samples)
  ]
  draft = drafting.draft_of(args, tokenizer)
  begin = lambda draft: _started(loaded, draft, tokenizer, layout, rows, chosen, args)
  sampled = begin(draft)
  started = time.monotonic()
  tokens = _show(sampled, rows, tokenizer, as_json=args.json)
  seconds = time.monotonic() - started
  print(
    f'{tokens} tokens in {seconds:.2f} s, {tokens / seconds:,.0f} tokens/s with compilation',
    file=sys.stderr,
  )
  if draft is not None:
    print(drafting.summary(sampled), file=sys.stderr)
  if args.compare:
    print(drafting.compared(begin, draft), file=sys.stderr)


def read_prompts(
  texts: Sequence[str], file: str | None, *, chat: bool
) -> list[tuple[str, dict[str, Any]]]:
  """Prompt rows with the name of the place each comes from: flags, a file, or standard input."""
  from opd_jax.data.sources import read_rows

  kind = lambda text: {'messages': [{'role': 'user', 'content': text}]} if chat else {'text': text}
  rows = [(f'--prompt number {number}', kind(text)) for number, text in enumerate(texts, start=1)]
  if file is not None:
    with open(file) as stream:
      rows += [(f'{file}, line {number}', row) for number, row in read_rows(stream, name=file)]
  elif not texts:
    if sys.stdin.isatty():
      print('a prompt a line, end with ctrl-d:', file=sys.stderr)
    lines = enumerate(sys.stdin, start=1)
    rows = [
      (f'standard input, line {number}', kind(line.rstrip('\n')))
      for number, line in lines
      if line.strip()
    ]
  if not rows:
    raise ValueError(
      'sample: no prompt. Give --prompt, --prompts FILE.jsonl, or lines on standard input.'
    )
  return rows


def _started(
  loaded: Any,
  draft: Any,
  tokenizer: Any,
  layout: Any,
  rows: list[list[int]],
  chosen: tuple,
  args: argparse.Namespace,
) -> Any:
  """The `sampler.Run` of these prompts, or the `speculative.Run` where a draft proposes."""
  import jax

  from opd_jax.data.prompts import left_padded
  from opd_jax.inference import decoding, sampler, speculative

  batch = left_padded(
    rows,
    width=max(map(len, rows)),
    pad=0,
    groups=[number // args.samples for number in range(len(rows))],
  )
  stops = sorted(tokenizer.stop_tokens) if tokenizer else ()
  settings = decoding.Decoding(
    rules=chosen,
    stop_tokens=tuple(token for token in stops if token < loaded.config.vocab_size),
  )
  model = sampler.unrolled(sampler.Model(loaded.config, layout, loaded.params))
  sampling = sampler.Sampling(decoding=settings, budget=args.max_new_tokens, slots=args.slots)
  key = jax.random.key(args.seed)
  if draft is None:
    return sampler.Run(model, batch, key, sampling=sampling)
  count = drafting.proposals_of(args)
  return speculative.Run(model, draft, batch, key, sampling=sampling, proposals=count)


def _show(sampled: Any, rows: list[list[int]], tokenizer: Any, *, as_json: bool) -> int:
  """Prints the responses and returns the number of tokens written."""
  started = time.monotonic()
  tokens = done = 0
  shown = 0  # characters of a single response that are on the screen
  with console.progress_bar('sampling') as bar:
    for progress in sampled.stream():
      if len(rows) == 1 and tokenizer and not as_json:
        text = tokenizer.decode(sampled.rollout.response[0, : progress.tokens].tolist())
        # A character may still lack its last bytes; it is held back until they come.
        printable = text if progress.finished else text.rstrip('\ufffd')
        print(printable[shown:], end='\n' if progress.finished else '', flush=True)
        shown = max(shown, len(printable))
      else:
        for row in progress.finished:
          _print(sampled.rollout, row, rows[row], tokenizer, as_json=as_json)
      done, tokens = done + len(progress.finished), progress.tokens
      bar(done, len(rows), f'{tokens / (time.monotonic() - started):,.0f} tokens/s')
  return tokens


def _print(rollout: Any, row: int, prompt: list[int], tokenizer: Any, *, as_json: bool) -> None:
  from opd_jax.types import ENDINGS

  length = int(rollout.mask[row].sum())
  tokens = rollout.response[row, :length].tolist()
  text = tokenizer.decode(tokens) if tokenizer else None
  ended = ENDINGS[rollout.ended_by[row]]
  if not as_json:
    shown = text if text is not None else ' '.join(map(str, tokens))
    print(f'--- row {row}, {length} tokens, ended by {ended}\n{shown}', flush=True)
    return
  record = {
    'row': row,
    'prompt_tokens': prompt,
    'tokens': tokens,
    'logps': rollout.logp[row, :length].tolist(),
    'behaviour_logps': rollout.behaviour_logp[row, :length].tolist(),
    'ended_by': ended,
    'text': text,
  }
  print(json.dumps(record), flush=True)
