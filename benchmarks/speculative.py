"""Speculative sampling beside plain sampling: speed in the same minute, and whether the text has the target's law.

    JAX_PLATFORMS=cpu python benchmarks/speculative.py speed [target width] [layers] [rows]   (default 512 6 8)
    JAX_PLATFORMS=cpu python benchmarks/speculative.py law [tokens]                           (default 120000)

speed  a draft that is the target's first layer, so that it agrees in part; plain and speculative calls alternate, and
       medians are compared. A copy of the target as its own draft bounds what proposals can gain.
law    chi-square of the last two tokens of texts against plain sampling, and against the draft as a control: p values
"""

import statistics
import sys
import time

import jax
import numpy as np
from scipy import stats

from opd_jax.data.prompts import left_padded
from opd_jax.inference import sampler, speculative
from opd_jax.inference.sampler import Model, Sampling
from opd_jax.models import presets, transformer
from opd_jax.sharding import mesh_layout

CALLS, NEW = 5, 64


def model_of(seed: int, **shape) -> Model:
  layout, config = mesh_layout(), presets.tiny(**shape)
  return sampler.unrolled(
    Model(config, layout, transformer.init(config, layout, jax.random.key(seed)))
  )


def shallow(target: Model, layers: int) -> Model:
  """The first layers of a model, under its own head."""
  config = target.config
  kept = {
    **target.params,
    'blocks': {number: target.params['blocks'][number] for number in range(layers)},
  }
  changes = {name: getattr(config, name) for name in ('vocab_size', 'width', 'mlp_width')}
  changes |= {name: getattr(config, name) for name in ('num_heads', 'num_kv_heads', 'head_dim')}
  small = sampler.unrolled(model_of(0, num_layers=layers, **changes))
  return small._replace(params=kept)


def softened(target: Model, part: float) -> Model:
  """The target with what layers behind the first add made smaller: the first layer then says most of what it says."""
  scale = lambda number, block: jax.tree.map(lambda x: x * (part if number else 1.0), block)
  blocks = {number: scale(number, block) for number, block in target.params['blocks'].items()}
  return target._replace(params={**target.params, 'blocks': blocks})


def prompts_of(rows: int, vocab_size: int):
  rng = np.random.RandomState(0)
  return left_padded(rng.randint(0, vocab_size, (rows, 16)).tolist(), width=16, pad=0)


def speed(width: int, layers: int, rows: int) -> None:
  shape = {'vocab_size': 2048, 'width': width, 'mlp_width': 2 * width, 'num_layers': layers}
  shape |= {'num_heads': 8, 'num_kv_heads': 4, 'head_dim': width // 8}
  target = softened(model_of(1, **shape), 0.5)
  draft, prompts = shallow(target, 1), prompts_of(rows, 2048)
  settings = Sampling(budget=NEW, slots=rows, segment=NEW)
  plain = lambda key: (sampler.generate(target, prompts, key, sampling=settings), float('nan'), 1.0)

  def drafted(key, proposals):
    told = speculative.generate(target, draft, prompts, key, sampling=settings, proposals=proposals)
    return told.rollout, told.acceptance, told.block_efficiency

  runs = {'plain': plain}
  for proposals in (4,):
    runs[f'{proposals} proposals'] = lambda key, proposals=proposals: drafted(key, proposals)
  seconds, processor = ({name: [] for name in runs} for _ in range(2))
  told = {}
  for call in range(CALLS + 1):
    for name, run in runs.items():
      started, busy = time.perf_counter(), time.process_time()
      rollout, acceptance, efficiency = run(jax.random.key(call))
      assert rollout.mask.all()
      if call:
        seconds[name].append(time.perf_counter() - started)
        processor[name].append(time.process_time() - busy)
      told[name] = acceptance, efficiency
  base = statistics.median(seconds['plain'])
  print(
    f'{layers} layers x {width}, draft of 1 layer, {rows} rows x {NEW} tokens, median of {CALLS}'
  )
  for name, values in seconds.items():
    median, (acceptance, efficiency) = statistics.median(values), told[name]
    print(
      f'  {name:12} {median:7.3f} s  {rows * NEW / median:8,.0f} tokens/s  {base / median:5.2f} x  '
      f'{statistics.median(processor[name]):7.3f} s of processors  '
      f'acceptance {acceptance:6.1%}  {efficiency:4.2f} tokens a pass'
    )


def law(tokens: int) -> None:
  size, length = 16, 6
  shape = {'vocab_size': size, 'width': 32, 'mlp_width': 64}
  target, draft = model_of(1, num_layers=2, **shape), model_of(2, num_layers=1, **shape)
  rows = 4095  # odd: one program
  settings, prompts = (
    Sampling(budget=length, slots=rows),
    left_padded([[3, 1]] * rows, width=2, pad=0),
  )
  runs = {
    'plain': lambda key: sampler.generate(target, prompts, key, sampling=settings),
    'plain again': lambda key: sampler.generate(target, prompts, key, sampling=settings),
    'speculative': lambda key: (
      speculative.generate(target, draft, prompts, key, sampling=settings, proposals=3).rollout
    ),
    'the draft': lambda key: sampler.generate(draft, prompts, key, sampling=settings),
  }
  counts, calls = {}, -(-tokens // (rows * length))
  for place, (name, run) in enumerate(runs.items()):
    counts[name] = np.zeros((length - 1, size * size), np.int64)
    for call in range(calls):
      response = run(jax.random.key(1000 * place + call)).response
      pairs = response[:, :-1] * size + response[:, 1:]
      for column in range(length - 1):
        counts[name][column] += np.bincount(pairs[:, column], minlength=size * size)
  print(
    f'{calls * rows * length:,} tokens each; pairs of tokens at {length - 1} places against plain sampling'
  )
  for name in list(runs)[1:]:
    values = [
      stats.chi2_contingency(both[:, both.sum(axis=0) >= 20])[1]
      for both in np.stack([counts['plain'], counts[name]], axis=1)
    ]
    print(f'  {name:12} p = ' + ', '.join(f'{value:.3g}' for value in values))


if __name__ == '__main__':
  what, *numbers = sys.argv[1:] or ['speed']
  if what == 'law':
    law(*map(int, numbers or ['120000']))
  else:
    speed(*map(int, [*numbers, *['512', '6', '8'][len(numbers) :]]))
