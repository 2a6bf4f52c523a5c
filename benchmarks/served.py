"""Scoring through `opd serve` against scoring in the process: tokens a second of the same rows, and what the way costs.

The last column is processor time of the protocol alone, which other work on the machine does not change: a reply is
made, written, read and sorted in one thread.

python benchmarks/served.py [PRESET] [ROWS] [LENGTH]     default: small 16 128
"""

import json
import statistics
import sys
import threading
import time

import jax
import numpy as np

from opd_jax.inference import scorer
from opd_jax.inference.sampler import Model
from opd_jax.judges import wire
from opd_jax.judges.client import Client
from opd_jax.judges.wire import Question
from opd_jax.models import presets, transformer
from opd_jax.serving import completions, replies
from opd_jax.serving.completions import Served
from opd_jax.serving.passes import Passes
from opd_jax.serving.server import Server
from opd_jax.sharding import mesh_layout
from opd_jax.types import ScoreRequest, Scores, TopK

PROMPT, TIMES, PASS = 64, 3, 8
SMALL = {'width': 256, 'num_layers': 4, 'mlp_width': 1024, 'vocab_size': 32_768}


def seconds(run) -> float:
  """The median of a few runs, the first left out."""
  run()
  taken = []
  for _ in range(TIMES):
    began = time.perf_counter()
    run()
    taken.append(time.perf_counter() - began)
  return statistics.median(taken)


def main() -> None:
  name, rows, length = [*sys.argv[1:], *('small', '16', '128')[len(sys.argv) - 1 :]]
  rows, length = int(rows), int(length)
  config = presets.tiny(**SMALL) if name == 'small' else presets.every()[name]()
  layout = mesh_layout()
  params = transformer.init(config, layout, jax.random.key(0))
  draw = np.random.default_rng(0).integers(0, config.vocab_size, (rows, PROMPT + length)).tolist()
  print(f'{name}, {rows} rows of {PROMPT} + {length} tokens, {jax.devices()[0].device_kind}')
  print(
    f'{"K":>4} {"here tok/s":>11} {"served tok/s":>13} {"share":>6} {"a token":>8} {"protocol":>15}'
  )
  for k in (1, 8, 32):
    here = lambda k=k: scorer.score_rows(
      params,
      [row[:PROMPT] for row in draw],
      [row[PROMPT:] for row in draw],
      config=config,
      layout=layout,
      request=ScoreRequest(top_k=k),
      rows=PASS,
    )
    passes = Passes(Model(config, layout, params), rows=PASS, top_k=k, slots=1)
    known = Served(name, config, None, None, k, '')
    server = Server(('127.0.0.1', 0), known, passes)
    far = served(server, [Question(row, PROMPT, k) for row in draw])
    local = seconds(here)
    passes.close()
    tokens = rows * length
    size, work = protocol(known, Question(draw[0], PROMPT, k))
    print(
      f'{k:4} {tokens / local:11,.0f} {tokens / far:13,.0f} {local / far:6.0%} {size:6,.0f} B '
      f'{1e6 * work:6.1f} us/token',
      flush=True,
    )


def served(server: Server, questions: list[Question]) -> float:
  """Seconds of all rows through the server."""
  thread = threading.Thread(target=lambda: server.serve_forever(poll_interval=0.05), daemon=True)
  thread.start()
  client = Client(name='it', url=server.url, concurrency=32, timeout=600, patience=60)

  def ask(question: Question):
    body = wire.body(question, model=server.served.name, protocol='completions', ours=True)
    return wire.read(client.post('/v1/completions', body), question, protocol='completions')

  asks = [lambda each=each: ask(each) for each in questions]
  taken = seconds(lambda: client.each(asks, str))
  server.shutdown()
  server.server_close()
  return taken


def protocol(known: Served, question: Question) -> tuple[float, float]:
  """Bytes and processor seconds of a token, from scores to scores; no model is asked."""
  tokens, k, rng = len(question.response), question.top_k, np.random.default_rng(0)
  best = -np.sort(rng.uniform(1, 9, (tokens, k)).astype(np.float32) + np.log(k))
  ids = np.argsort(rng.random((tokens, known.config.vocab_size)))[:, :k].astype(np.int32)
  logp = np.full(tokens, -20.0, np.float32)
  scores = Scores(logp, np.ones(tokens, bool), top_k=TopK(ids, best))
  asked = wire.body(question, model=known.name, protocol='completions', ours=True)
  request = completions.understood(asked, known)
  began = time.process_time()
  for _ in range(20):
    content = json.dumps({'choices': [replies.choice(0, request, known, scores, None)]})
    wire.read(json.loads(content), question, protocol='completions')
  return len(content) / tokens, (time.process_time() - began) / 20 / tokens


if __name__ == '__main__':
  main()
