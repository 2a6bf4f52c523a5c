"""The vocabulary pass against whole logits and the tiled losses of others: time, memory beyond inputs and gradients.

    python benchmarks/vocabulary.py [narrow] [wide] [tiles]

Others run where an interpreter is named: TRL_PYTHON with PEER_TRL, EASYDEL_PYTHON with PEER_EASYDEL (a script that
takes `V B L H mode` and prints seconds, base and peak megabytes).
"""

import functools
import os
import re
import statistics
import subprocess
import sys
import time

import jax
import jax.numpy as jnp

from opd_jax.losses import divergences, supports, terms, vocabulary
from opd_jax.losses.columns import Target
from opd_jax.losses.vocabulary import Share
from opd_jax.sharding import mesh_layout

V, TOP, REPEATS = 151_936, 32, 5
LAYOUT = mesh_layout()
TERMS = {
  'reverse KL': terms.divergence(divergences.reverse_kl(), supports.full()),
  'forward KL': terms.divergence(divergences.forward_kl(), supports.full()),
  'JSD': terms.divergence(divergences.jensen_shannon(beta=0.5), supports.full()),
  f'top {TOP}': terms.divergence(divergences.forward_kl(), supports.teacher_top_k(TOP, close=supports.tail())),
}


@functools.lru_cache(maxsize=1)
def inputs(tokens: int, width: int, teacher_width: int):
  keys = jax.random.split(jax.random.key(0), 4)
  normal = lambda key, *shape, scale=1.0: scale * jax.random.normal(key, shape, jnp.float32)
  hidden, states = normal(keys[0], 1, tokens, width), normal(keys[1], 1, tokens, teacher_width)
  heads = normal(keys[2], width, V, scale=0.05), normal(keys[3], teacher_width, V, scale=0.05)
  response = jnp.zeros((1, tokens), jnp.int32)
  return hidden, heads[0], response, Target(hidden=states, head=heads[1])


def plain(log_p, log_q, label: str):
  """What one writes without a library: [tokens] from whole log-probabilities."""
  if label == 'reverse KL':
    return (jnp.exp(log_p) * (log_p - log_q)).sum(-1)
  if label == 'forward KL':
    return (jnp.exp(log_q) * (log_q - log_p)).sum(-1)
  if label == 'JSD':
    log_m = jnp.logaddexp(log_p, log_q) - jnp.log(2.0)
    return 0.5 * (jnp.exp(log_q) * (log_q - log_m) + jnp.exp(log_p) * (log_p - log_m)).sum(-1)
  log_q, ids = jax.lax.top_k(log_q, TOP)
  log_p = jnp.take_along_axis(log_p, ids, axis=-1)
  rest = lambda log: jnp.log1p(-jnp.exp(log).sum(-1, keepdims=True))
  log_p, log_q = (jnp.concatenate([log, rest(log)], axis=-1) for log in (log_p, log_q))
  return (jnp.exp(log_q) * (log_q - log_p)).sum(-1)


def program(label: str, tokens: int, *, tile: int | None):
  """tile None: whole logits, plainly differentiated."""

  def loss(hidden, head, response, target):
    if tile is None:
      log_p = jax.nn.log_softmax(hidden[0] @ head)
      log_q = jax.lax.stop_gradient(jax.nn.log_softmax(target.hidden[0] @ target.head))
      return plain(log_p, log_q, label).mean()
    shares = (Share(TERMS[label], jnp.full(response.shape, 1 / tokens), {}),)
    return vocabulary.weighted_sum(hidden, head, response, target, shares, layout=LAYOUT, tile=tile)[0]

  return jax.jit(jax.value_and_grad(loss, argnums=(0, 1)))


def measured(function, arguments) -> tuple[float, float]:
  """Median seconds, and bytes of temporaries of the compiled program."""
  compiled = function.lower(*arguments).compile()
  jax.block_until_ready(compiled(*arguments))
  seconds = []
  for _ in range(REPEATS):
    begin = time.perf_counter()
    jax.block_until_ready(compiled(*arguments))
    seconds.append(time.perf_counter() - begin)
  return statistics.median(seconds), compiled.memory_analysis().temp_size_in_bytes


def products(hidden, head, response, target) -> float:
  """Seconds of the four bare products, each whole."""
  logits = jnp.zeros((hidden.shape[1], V))
  pairs = (
    (hidden[0], head), (target.hidden[0], target.head), (logits, head.T), (hidden[0].T, logits)
  )  # fmt: skip
  multiply = jax.jit(jnp.matmul)
  return sum(measured(multiply, pair)[0] for pair in pairs)


def row(name: str, seconds: float, temporaries: float, *, whole: float, note: str = '') -> None:
  print(
    f'  {name:28s}{seconds:8.2f} s{temporaries / 1e9:8.2f} GB{seconds / whole:8.2f} x whole logits  {note}', flush=True
  )


def peer(name: str, python: str, script: str, mode: str, tokens: int, width: int, whole: float) -> None:
  if not (os.environ.get(python) and os.environ.get(script)):
    print(f'  {name}: not measured; set {python} and {script}')
    return
  command = [os.environ[python], os.environ[script], *map(str, (V, 1, tokens, width)), mode]
  out = subprocess.run(command, capture_output=True, text=True, check=False).stdout
  found = re.search(r's \[([\d., ]+)\] base (\d+) peak MB (\d+)', out)
  if not found:
    print(f'  {name}: failed')
    return
  seconds = statistics.median(float(part) for part in found[1].split(',')[1:])
  beyond = (int(found[3]) - int(found[2])) * 2**20 - 4 * width * (V + tokens)
  row(name, seconds, beyond, whole=whole, note='(resident memory beyond gradients)')


def compare(name: str, width: int, teacher_width: int, counts) -> None:
  for tokens in counts:
    arguments = inputs(tokens, width, teacher_width)
    bare = products(*arguments)
    tile = vocabulary.tile_of(width, V)
    print(f'{name}: V = {V}, {tokens} tokens, widths {width} / {teacher_width}, float32; tile {tile}')
    whole = 0.0
    for label in TERMS:
      seconds, temporaries = measured(program(label, tokens, tile=None), arguments)
      whole = whole or seconds  # reverse KL
      row(f'{label}, whole logits', seconds, temporaries, whole=seconds)
      ours, temporaries = measured(program(label, tokens, tile=tile), arguments)
      row(f'{label}, ours', ours, temporaries, whole=seconds, note=f'four bare products take {bare / ours:.0%} of it')
    peer('reverse KL, TRL tiled', 'TRL_PYTHON', 'PEER_TRL', 'chunk', tokens, width, whole)
    peer('forward KL, EasyDeL chunked', 'EASYDEL_PYTHON', 'PEER_EASYDEL', '64', tokens, width, whole)


def frontier(width: int, teacher_width: int, tokens: int = 1024) -> None:
  arguments = inputs(tokens, width, teacher_width)
  print(f'tiles: reverse KL, V = {V}, {tokens} tokens, widths {width} / {teacher_width}')
  for tile in (16, 32, 64, 128, 256, 512, 1024):
    seconds, temporaries = measured(program('reverse KL', tokens, tile=tile), arguments)
    chosen = '   the default' if tile == vocabulary.tile_of(width, V) else ''
    print(f'  {tile:5d} {seconds:8.2f} s {temporaries / 1e9:8.2f} GB{chosen}', flush=True)


if __name__ == '__main__':
  wanted = sys.argv[1:] or ['narrow', 'wide', 'tiles']
  if 'narrow' in wanted:
    compare('narrow', 64, 128, (1024, 4096))
  if 'wide' in wanted:
    compare('wide', 1024, 2048, (1024, 4096))
  if 'tiles' in wanted:
    frontier(64, 128)
    frontier(1024, 2048)
