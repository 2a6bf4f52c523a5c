"""The vocabulary pass against whole logits and the tiled losses of others: time, memory beyond inputs and gradients.

    python benchmarks/vocabulary.py [narrow] [wide] [wider] [tiles]

narrow  widths 64 and 128, 1,024 and 4,096 tokens      wide   widths 1,024 and 2,048, 1,024 tokens (medians of 3)
wider   the same at 4,096 tokens, reverse KL only       tiles  time and memory over the size of a tile
device  widths 4,096, 8,192 tokens, bfloat16, and the frontier there: on an accelerator, and only when named

TRL's and EasyDeL's losses run in the interpreters that TRL_PYTHON and EASYDEL_PYTHON name.
"""

import functools
import os
import statistics
import subprocess
import sys
import time

import jax
import jax.numpy as jnp

from opd_jax.losses import vocabulary
from opd_jax.losses.divergences import ForwardKL, JensenShannon, ReverseKL
from opd_jax.losses.rest_rules import Tail
from opd_jax.losses.supports import FULL, Support, TeacherTopK
from opd_jax.losses.terms import DivergenceTerm
from opd_jax.losses.vocab_shard import Target
from opd_jax.sharding import mesh_layout

V, TOP = 151_936, 32
LAYOUT = mesh_layout()
BEST = Support(entries=TeacherTopK(TOP), rest=Tail())
TERMS = {
  'reverse KL': DivergenceTerm(divergence=ReverseKL(), support=FULL),
  'forward KL': DivergenceTerm(divergence=ForwardKL(), support=FULL),
  'JSD': DivergenceTerm(divergence=JensenShannon(beta=0.5), support=FULL),
  f'top {TOP}': DivergenceTerm(divergence=ForwardKL(), support=BEST),
}


@functools.lru_cache(maxsize=1)
def inputs(tokens: int, width: int, teacher_width: int, dtype: str = 'float32'):
  keys = jax.random.split(jax.random.key(0), 4)
  normal = lambda key, *shape, scale=1.0: (scale * jax.random.normal(key, shape)).astype(dtype)
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
    weighted = (TERMS[label](jnp.full(response.shape, 1 / tokens)),)
    return vocabulary.weighted_sum(
      hidden, head, response, {'teacher': target}, weighted, layout=LAYOUT, tile=tile
    )[0]

  return jax.jit(jax.value_and_grad(loss, argnums=(0, 1)))


def measured(function, arguments, repeats: int = 5) -> tuple[float, float]:
  """Median seconds, and bytes of temporaries of the compiled program."""
  compiled = function.lower(*arguments).compile()
  jax.block_until_ready(compiled(*arguments))
  seconds = []
  for _ in range(repeats):
    begin = time.perf_counter()
    jax.block_until_ready(compiled(*arguments))
    seconds.append(time.perf_counter() - begin)
  return statistics.median(seconds), compiled.memory_analysis().temp_size_in_bytes


def products(hidden, head, response, target) -> float:
  """Seconds of the four bare products, each whole."""
  logits = jnp.zeros((hidden.shape[1], V), hidden.dtype)
  pairs = (
    (hidden[0], head),
    (target.hidden[0], target.head),
    (logits, head.T),
    (hidden[0].T, logits),
  )
  multiply = jax.jit(jnp.matmul)
  return sum(measured(multiply, pair)[0] for pair in pairs)


def row(name: str, seconds: float, temporaries: float, *, whole: float, note: str = '') -> None:
  print(
    f'  {name:28s}{seconds:8.3f} s{temporaries / 1e9:8.2f} GB{seconds / whole:8.2f} x whole logits  {note}',
    flush=True,
  )


# What another interpreter runs: V, tokens, width -> a line 'seconds … bytes'. Its peak is set back before the calls.
PEER = """
import sys, time
V, N, H = map(int, sys.argv[1:])
peak = lambda: int(next(l for l in open('/proc/self/status') if l.startswith('VmHWM')).split()[1]) * 1024
{setup}
call(); open('/proc/self/clear_refs', 'w').write('5'); base = peak(); seconds = []
for _ in range({calls}):
  begin = time.perf_counter(); call(); seconds.append(time.perf_counter() - begin)
print('measured', sorted(seconds)[len(seconds) // 2], peak() - base)
"""
TRL = """
import torch
from trl.trainer.distillation_trainer import _chunked_divergence_loss as chunked
hidden, states = torch.randn(1, N, H, requires_grad=True), torch.randn(1, N, 2 * H)
head, teacher = (torch.randn(V, H) * .05).requires_grad_(), torch.randn(V, 2 * H) * .05
def call():
  chunked(hidden, states, head, teacher, torch.ones(1, N), 1.0)[0].backward()
  hidden.grad = head.grad = None
"""
EASYDEL = """
import os; os.environ['JAX_PLATFORMS'] = 'cpu'
import jax, jax.numpy as jnp
from easydel.trainers.distillation_trainer._fn import chunked_distillation_loss
k = jax.random.split(jax.random.key(0), 4); n = jax.random.normal
hidden, states = n(k[0], (1, N, H)), n(k[1], (1, N, 2 * H))
head, teacher = n(k[2], (V, H)) * .05, n(k[3], (V, 2 * H)) * .05
def loss(hidden, head):
  return chunked_distillation_loss(hidden, states, lambda h: h @ head.T, lambda h: h @ teacher.T,
    loss_mask=jnp.ones((1, N)), labels=None, use_hard_labels=False, temperature=1.0, alpha=1.0, chunk_size=64)[0]
gradient = jax.jit(jax.value_and_grad(loss, argnums=(0, 1)))
call = lambda: jax.block_until_ready(gradient(hidden, head))
"""


def peer(
  name: str, python: str, setup: str, tokens: int, width: int, whole: float, *, calls: int
) -> None:
  if not os.environ.get(python):
    print(f'  {name}: not measured; {python} names an interpreter that has it')
    return
  code = PEER.format(setup=setup, calls=calls)
  done = subprocess.run(
    [os.environ[python], '-c', code, *map(str, (V, tokens, width))], capture_output=True, text=True
  )
  found = [line.split()[1:] for line in done.stdout.splitlines() if line.startswith('measured')]
  if not found:
    print(f'  {name}: failed: {(done.stderr.strip().splitlines() or ["killed"])[-1]}')
    return
  seconds, growth = map(float, found[0])
  row(
    name, seconds, growth, whole=whole, note='(growth of its resident memory, gradients included)'
  )


def compare(
  name: str,
  width: int,
  teacher_width: int,
  tokens: int,
  labels=tuple(TERMS),
  repeats: int = 5,
  dtype: str = 'float32',
) -> None:
  arguments = inputs(tokens, width, teacher_width, dtype)
  bare = products(*arguments)
  tile = vocabulary.tile_of(width, V)
  print(f'{name}: V = {V}, {tokens} tokens, widths {width} / {teacher_width}, {dtype}; tile {tile}')
  whole = 0.0
  for label in labels:
    seconds, temporaries = measured(program(label, tokens, tile=None), arguments, repeats)
    whole = whole or seconds  # reverse KL
    row(f'{label}, whole logits', seconds, temporaries, whole=seconds)
    ours, temporaries = measured(program(label, tokens, tile=tile), arguments, repeats)
    row(
      f'{label}, ours',
      ours,
      temporaries,
      whole=seconds,
      note=f'four bare products take {bare / ours:.0%} of it',
    )
  peer('reverse KL, TRL tiled', 'TRL_PYTHON', TRL, tokens, width, whole, calls=repeats)
  peer(
    'forward KL, EasyDeL chunked', 'EASYDEL_PYTHON', EASYDEL, tokens, width, whole, calls=repeats
  )


def frontier(width: int, teacher_width: int, tokens: int = 1024, dtype: str = 'float32') -> None:
  arguments = inputs(tokens, width, teacher_width, dtype)
  print(f'tiles: reverse KL, V = {V}, {tokens} tokens, widths {width} / {teacher_width}')
  for tile in (16, 32, 64, 128, 256, 512, 1024) if dtype == 'float32' else (512, 1024, 2048):
    seconds, temporaries = measured(program('reverse KL', tokens, tile=tile), arguments, 3)
    chosen = '   the default' if tile == vocabulary.tile_of(width, V) else ''
    print(f'  {tile:5d} {seconds:8.3f} s {temporaries / 1e9:8.2f} GB{chosen}', flush=True)


if __name__ == '__main__':
  wanted = sys.argv[1:] or ['narrow', 'wide', 'wider', 'tiles']
  if 'narrow' in wanted:
    compare('narrow', 64, 128, 1024)
    compare('narrow', 64, 128, 4096, labels=('reverse KL',), repeats=3)
  if 'wide' in wanted:
    compare('wide', 1024, 2048, 1024, repeats=3)
  if 'wider' in wanted:
    compare('wide', 1024, 2048, 4096, labels=('reverse KL',), repeats=1)
  if 'tiles' in wanted:
    frontier(64, 128)
    frontier(1024, 2048)
  if 'device' in wanted:
    compare('device', 4096, 4096, 8192, dtype='bfloat16')
    frontier(4096, 4096, 8192, 'bfloat16')
