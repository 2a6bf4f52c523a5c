"""The sampler against its peers, in one run: medians over calls, ratios, share of the bandwidth bound.

    JAX_PLATFORMS=cpu python benchmarks/sampler.py [tiny] [real] [tail]        (default: all three)

tiny  the shape that all peers share: batch 8, prompt 32, 64 new tokens, V = 2,048, two layers of 128, float32
real  Qwen3-0.6B's shape, random weights, batch 8, prompt 64, 64 new tokens, float32
tail  256 rows of geometric length (mean 64, budget 512) in 16 slots, with and without refilling them

Peers: Hugging Face generate runs in this interpreter when torch is installed; Tunix's sampler in the one that
TUNIX_PYTHON names, through the script that PEER_TUNIX names (it prints 'sample … tok/s' lines).
"""

import os
import statistics
import subprocess
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np

from opd_jax.inference import sampler
from opd_jax.inference.decoding import Decoding
from opd_jax.models import presets, transformer
from opd_jax.sharding import mesh_layout
from opd_jax.types import Prompts

CALLS = 7
TINY = {'vocab_size': 2048, 'width': 128, 'mlp_width': 256, 'num_heads': 4, 'num_kv_heads': 2, 'head_dim': 32}


def prompts_of(rows: int, length: int, vocab_size: int) -> Prompts:
  tokens = np.random.RandomState(0).randint(4, vocab_size, (rows, length)).astype(np.int32)
  numbers = np.arange(rows, dtype=np.int32)
  return Prompts(tokens=tokens, length=np.full(rows, length, np.int32), row=numbers, group=numbers)


def model_of(config) -> sampler.Model:
  layout = mesh_layout()
  params = transformer.init(config, layout, jax.random.key(0))
  return jax.block_until_ready(sampler.unrolled(sampler.Model(config, layout, params)))


def ours(model, prompts, new_tokens: int, calls: int) -> list[float]:
  """Seconds of each call after the first."""
  settings = sampler.Sampling(budget=new_tokens, slots=len(prompts.row), segment=new_tokens)
  seconds = []
  for call in range(calls + 1):
    started = time.perf_counter()
    rollout = sampler.generate(model, prompts, jax.random.key(call), sampling=settings)
    seconds.append(time.perf_counter() - started)
    assert rollout.mask.all()
  return seconds[1:]


def torch_model(config):
  import torch
  import transformers

  from opd_jax.models import hub_config

  raw = {
    k: v for k, v in hub_config.write(config, dtype='float32').items() if k not in ('architectures', 'torch_dtype')
  }
  torch.manual_seed(0)
  settings = transformers.AutoConfig.for_model(raw.pop('model_type'), **raw)
  model = transformers.AutoModelForCausalLM.from_config(settings).eval()
  model.generation_config = transformers.GenerationConfig(pad_token_id=0, eos_token_id=None, bos_token_id=2)
  return model


def generate_hf(model, prompts, new_tokens: int, calls: int) -> list[float]:
  import torch

  ids = torch.from_numpy(np.asarray(prompts.tokens).astype(np.int64))
  seconds = []
  for _ in range(calls + 1):
    started = time.perf_counter()
    model.generate(
      ids, attention_mask=torch.ones_like(ids), do_sample=True, top_k=0,
      max_new_tokens=new_tokens, min_new_tokens=new_tokens,
    )  # fmt: skip
    seconds.append(time.perf_counter() - started)
  return seconds[1:]


def tunix(tokens: int) -> list[float]:
  """Seconds per call of the peer's own script; its first call compiles."""
  python, script = os.environ.get('TUNIX_PYTHON'), os.environ.get('PEER_TUNIX')
  if not python or not script:
    return []
  out = subprocess.run([python, script], capture_output=True, text=True, check=False).stdout
  rates = [
    float(line.split()[-4 if line.endswith(')') else -2]) for line in out.splitlines() if line.startswith('sample')
  ]
  return [tokens / rate for rate in rates[1:]]


def copy_bandwidth() -> float:
  """Bytes per second, read plus written, of passing over half a gigabyte in place."""
  step = jax.jit(lambda x: x + 1, donate_argnums=0)  # in place: fresh pages would be timed instead
  x = jax.block_until_ready(step(jnp.zeros(2**27, jnp.float32)))
  seconds = []
  for _ in range(CALLS):
    started = time.perf_counter()
    x = jax.block_until_ready(step(x))
    seconds.append(time.perf_counter() - started)
  return 2 * x.nbytes / statistics.median(seconds)


def line(name: str, seconds: list[float], tokens: int, base: float) -> None:
  if not seconds:
    print(f'{name:26} not installed here')
    return
  middle = statistics.median(seconds)
  print(f'{name:26} {middle * 1e3:10.1f} ms  {tokens / middle:9.0f} tokens/s   {middle / base:6.2f} x ours', flush=True)


def tiny() -> None:
  config = presets.tiny(**TINY, num_layers=2, max_positions=512, tied=False)
  model, prompts, mine, theirs, peers = model_of(config), prompts_of(8, 32, 2048), [], [], []
  other = torch_model(config) if has_torch() else None
  for _ in range(3):  # in turn, so that a slow minute is slow for everybody
    mine += ours(model, prompts, 64, CALLS)
    theirs += generate_hf(other, prompts, 64, CALLS) if other else []
    peers += tunix(512)
  print(f'tiny: batch 8, prompt 32, 64 new tokens; medians of {len(mine)}, {len(theirs)} and {len(peers)} calls')
  base = statistics.median(mine)
  line('ours', mine, 512, base)
  line('Hugging Face generate', theirs, 512, base)
  line('Tunix sampler', peers, 512, base)


def real() -> None:
  config = presets.qwen3_0p6b()
  model, prompts, calls = model_of(config), prompts_of(8, 64, config.vocab_size), 3
  other, mine, theirs = torch_model(config) if has_torch() else None, [], []
  for _ in range(2):
    mine += ours(model, prompts, 64, calls)
    theirs += generate_hf(other, prompts, 64, calls) if other else []
  base = statistics.median(mine)
  print(f'real: Qwen3-0.6B shape, batch 8, prompt 64, 64 new tokens, float32; medians of {len(mine)} calls')
  line('ours', mine, 512, base)
  line('Hugging Face generate', theirs, 512, base)
  prefill = statistics.median(ours(model, prompts, 1, calls))
  weights = transformer.count(config, mesh_layout()) * 4
  cache = 2 * config.num_layers * 8 * config.num_kv_heads * 128 * config.head_dim * 4
  step, bandwidth = (base - prefill) / 63, copy_bandwidth()
  print(
    f'a decode step takes {step * 1e3:.1f} ms and reads {(weights + cache) / 1e9:.2f} GB: '
    f'{(weights + cache) / step / bandwidth:.0%} of the measured copy bandwidth of {bandwidth / 1e9:.1f} GB/s'
  )


def tail() -> None:
  """One stop token of probability 1/64 per step makes the lengths geometric; a blank head makes draws uniform."""
  config = presets.tiny(vocab_size=64, width=128, mlp_width=512, num_layers=4)
  model = model_of(config)
  params = {**model.params, 'final_norm': {'scale': jnp.zeros_like(model.params['final_norm']['scale'])}}
  model, prompts = model._replace(params=params), prompts_of(256, 32, 64)
  decoding = Decoding(stop_tokens=(0,))
  print('tail: 256 rows, geometric lengths, mean 64, budget 512, 16 slots')
  rates = {}
  for name in ('refilled', 'in batches of 16'):
    seconds = []
    for _ in range(6):
      started = time.perf_counter()
      useful, steps = (refilled if name == 'refilled' else batches)(model, prompts, decoding)
      seconds.append(time.perf_counter() - started)
    middle = statistics.median(seconds[1:])
    rates[name] = useful / middle
    rate, share = useful / middle, useful / steps
    print(f'{name:20} {useful} tokens  {middle:7.2f} s  {rate:9.0f} tokens/s  slot occupancy {share:.1%}')
  print(f'refilling gives {rates["refilled"] / rates["in batches of 16"]:.2f} x')


def refilled(model, prompts, decoding) -> tuple[int, int]:
  settings = sampler.Sampling(decoding=decoding, budget=512, slots=16, segment=32)
  *_, last = sampler.Run(model, prompts, jax.random.key(0), sampling=settings).stream()
  return last.tokens, last.slot_steps


def batches(model, prompts, decoding) -> tuple[int, int]:
  """The same sampler without refill or shrinking: each batch of 16 lasts as long as its longest row."""
  settings = sampler.Sampling(decoding=decoding, budget=512, slots=16, segment=512)
  tokens = steps = 0
  for begin in range(0, 256, 16):
    part = Prompts(*(field[begin : begin + 16] for field in prompts))
    run = sampler.Run(model, part, jax.random.key(0), sampling=settings)
    run.pieces = 16  # the least number of slots: the tail is not compacted
    *_, last = run.stream()
    tokens, steps = tokens + last.tokens, steps + last.slot_steps
  return tokens, steps


def has_torch() -> bool:
  import importlib.util

  return importlib.util.find_spec('torch') is not None


if __name__ == '__main__':
  for part in sys.argv[1:] or ('tiny', 'real', 'tail'):
    {'tiny': tiny, 'real': real, 'tail': tail}[part]()
