"""Floor 6. `opd sample`: write with a model, and say how likely it thought what it wrote."""

import json
import sys
import time
from collections.abc import Sequence
from typing import Any

import jax

from opd_jax import console
from opd_jax.commands.loading import with_tokenizer
from opd_jax.data.prompts import left_padded, read_rows, tokens_of
from opd_jax.data.tokenizers import Tokenizer
from opd_jax.inference import decoding, sampler
from opd_jax.inference.sampler import Model, Run, Sampling
from opd_jax.types import ENDINGS


def rules(
  *, temperature: float, top_k: int | None, top_p: float | None, min_p: float | None
) -> tuple:
  """The usual order: temperature, then what is cut off. Temperature 0 is greedy."""
  first = decoding.greedy() if temperature == 0 else decoding.temperature(temperature)
  chosen = [] if temperature == 1.0 else [first]
  chosen += [decoding.top_k(top_k)] if top_k is not None else []
  chosen += [decoding.top_p(top_p)] if top_p is not None else []
  chosen += [decoding.min_p(min_p)] if min_p is not None else []
  return tuple(chosen)


def read_prompts(
  texts: Sequence[str], file: str | None, *, chat: bool
) -> list[tuple[str, dict[str, Any]]]:
  """Prompt rows with the name of the place each comes from: flags, a file, or standard input."""
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


def sample(
  *,
  model: str,
  prompts: Sequence[str],
  prompts_file: str | None,
  chat: bool,
  max_new_tokens: int,
  settings: tuple,
  samples: int,
  seed: int,
  slots: int,
  dtype: str | None,
  as_json: bool,
) -> None:
  """Samples and prints every response as it ends; a lone one as it is written."""
  if samples < 1:
    raise ValueError(f'sample: --samples must be at least 1, got {samples}.')
  asked = read_prompts(prompts, prompts_file, chat=chat)
  loaded, tokenizer, layout = with_tokenizer(model, seed=seed, dtype=dtype)
  size = loaded.config.vocab_size
  rows = [
    tokens_of(row, tokenizer, name=name, vocab_size=size)
    for name, row in asked
    for _ in range(samples)
  ]
  batch = left_padded(
    rows,
    width=max(map(len, rows)),
    pad=0,
    groups=[number // samples for number in range(len(rows))],
  )
  stops = tuple(sorted(tokenizer.stop_tokens)) if tokenizer else ()
  written = Run(
    sampler.unrolled(Model(loaded.config, layout, loaded.params)),
    batch,
    jax.random.key(seed),
    sampling=Sampling(
      decoding=decoding.Decoding(
        rules=settings, stop_tokens=tuple(token for token in stops if token < size)
      ),
      budget=max_new_tokens,
      slots=slots,
    ),
  )
  started = time.monotonic()
  tokens = done = 0
  shown = 0  # characters of a lone response that are on the screen
  with console.progress_bar('sampling') as bar:
    for progress in written.stream():
      if len(rows) == 1 and tokenizer and not as_json:
        text = tokenizer.decode(written.rollout.response[0, : progress.tokens].tolist())
        # A character may still lack its last bytes; it is held back until they come.
        whole = text if progress.finished else text.rstrip('\ufffd')
        print(whole[shown:], end='\n' if progress.finished else '', flush=True)
        shown = max(shown, len(whole))
      else:
        for row in progress.finished:
          _print(written, row, rows[row], tokenizer, as_json=as_json)
      done, tokens = done + len(progress.finished), progress.tokens
      bar(done, len(rows), f'{tokens / (time.monotonic() - started):,.0f} tokens/s')
  seconds = time.monotonic() - started
  print(
    f'{tokens} tokens in {seconds:.2f} s, {tokens / seconds:,.0f} tokens/s with compilation',
    file=sys.stderr,
  )


def _print(
  written: Run, row: int, prompt: list[int], tokenizer: Tokenizer | None, *, as_json: bool
) -> None:
  rollout = written.rollout
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
