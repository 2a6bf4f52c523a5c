"""Floor 6. `opd serve`: one model behind an address, as a teacher for runs on other machines."""

import argparse
import re
import threading
from typing import Any

from opd_jax.commands import flags

HELP = 'serve a model over HTTP: log-probabilities of prompts, and texts'
EPILOG = """\
A run on another machine then learns from it with one line of gin, judges.served.url = 'http://HOST:8000'
(experiments/judges/served.gin, docs/served.md). Nobody is asked for a key: listen where only your own machines are.

  opd serve runs/sft/student --port 8000
  opd serve Qwen/Qwen3-8B --host 0.0.0.0 --dtype bfloat16 --layout tensor=4 --max_top_k 64
  curl -s localhost:8000/v1/completions -d '{"prompt": [1, 2, 3], "max_tokens": 0, "prompt_logprobs": 4}'

POST /v1/completions, /v1/chat/completions, /tokenize, /detokenize; GET /v1/models, /v1/vocabulary, /health.
"""
AXES = ('data', 'fsdp', 'tensor')


def add_flags(parser: argparse.ArgumentParser) -> None:
  add = parser.add_argument
  add('model', metavar='MODEL', help='preset (random weights), folder, or hub id')
  add('--host', default='127.0.0.1', help='address to listen on; default: this machine only')
  add('--port', type=int, default=8000, metavar='N', help='default: 8000; 0 takes a free one')
  add('--name', metavar='NAME', help='of the model in requests; default: MODEL')
  add('--max_top_k', type=flags.count, default=32, metavar='K', help='likeliest tokens; default 32')
  add('--rows', type=flags.count, default=8, metavar='N', help='of a pass; default: 8')
  add('--slots', type=flags.count, default=16, metavar='N', help='texts in flight; default: 16')
  add('--layout', metavar='AXIS=N[,…]', help='sizes of data, fsdp, tensor, e.g. tensor=4')
  add('--dtype', choices=flags.DTYPES, help='of parameters and activations; default: as stored')
  add('--seed', type=flags.seed, default=0, help="of a preset's weights, and of texts")


def run(args: argparse.Namespace) -> int:
  import signal

  server = started(args)
  stop = lambda number, frame: threading.Thread(target=server.shutdown).start()
  signal.signal(signal.SIGTERM, stop)
  signal.signal(signal.SIGINT, stop)
  server.serve_forever(poll_interval=0.1)
  server.server_close()
  print(f'ended; {server.passes.scored:,} rows were scored in {server.passes.passes:,} rounds')
  return 0


def started(args: argparse.Namespace) -> Any:
  """The server, listening."""
  from opd_jax.commands.loading import with_tokenizer
  from opd_jax.inference.sampler import Model
  from opd_jax.serving.completions import Served
  from opd_jax.serving.passes import Passes
  from opd_jax.serving.server import Server
  from opd_jax.storage import load
  from opd_jax.storage.fingerprint import digest

  layout = None if args.layout is None else layout_of(args.layout)
  loaded, tokenizer, layout = with_tokenizer(
    args.model, seed=args.seed, dtype=args.dtype, layout=layout
  )
  strings = load.strings_of(args.model) if tokenizer is None else tokenizer.strings()
  served = Served(
    name=args.name or args.model,
    config=loaded.config,
    tokenizer=tokenizer,
    strings=strings,
    top_k=min(args.max_top_k, loaded.config.vocab_size),
    digest=digest(loaded.params),
  )
  model = Model(loaded.config, layout, loaded.params)
  passes = Passes(model, rows=args.rows, top_k=served.top_k, slots=args.slots, seed=args.seed)
  try:
    server = Server((args.host, args.port), served, passes)
  except (OSError, OverflowError) as error:
    reason = getattr(error, 'strerror', None) or error
    raise ValueError(
      f'serve: {args.host}:{args.port} cannot be listened on ({reason}). Choose another --host or --port.'
    ) from error
  print(
    f'{served.name} at {server.url}: top {served.top_k}, {served.config.max_positions:,} positions; ctrl-c ends it',
    flush=True,
  )
  return server


def layout_of(text: str) -> Any:
  """A layout of one machine: `fsdp=2,tensor=2`."""
  from opd_jax.sharding import mesh_layout

  sizes = {}
  for part in text.split(','):
    match = re.fullmatch(r'(\w+)=(\d+|-1)', part.strip())
    if match is None or match[1] not in AXES:
      raise ValueError(f'serve: --layout is AXIS=N[,AXIS=N] of {", ".join(AXES)}, got {text!r}.')
    sizes[match[1]] = int(match[2])
  return mesh_layout(**sizes)
