"""The sampler against its peers, in one run: medians over calls, ratios, share of the bandwidth bound.

    JAX_PLATFORMS=cpu python benchmarks/sampler.py [tiny] [real] [tail] [agreement]      (default: all four)
    python benchmarks/sampler.py decode [preset] [prompt] [new tokens] [batch …]         on an accelerator

tiny  the shape that all peers share: batch 8, prompt 32, 64 new tokens, V = 2,048, two layers of 128, float32
real  Qwen3-0.6B's shape, random weights, batch 8, prompt 64, 64 new tokens, float32
tail  256 rows of geometric length (mean 64, budget 512) in 16 slots, with and without refilling them

agreement  how far sampler, scorer and other numbers of slots are apart, in float32 and bfloat16
decode     a real shape in bfloat16: share of the memory bandwidth that a decode step uses (default qwen3_1p7b 512 512
           64 256)

Peers: Hugging Face generate runs in this interpreter when torch is installed; Tunix's sampler in the one that
TUNIX_PYTHON names, through the script that PEER_TUNIX names (it prints 'sample … tok/s' lines).
"""

import functools
import os
import statistics
import subprocess
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np

from opd_jax.inference import sampler, scorer
from opd_jax.inference.decoding import Decoding
from opd_jax.models import presets, transformer
from opd_jax.sharding import mesh_layout
from opd_jax.types import Prompts

CALLS = 7
TINY = {
  'vocab_size': 2048,
  'width': 128,
  'mlp_width': 256,
  'num_heads': 4,
  'num_kv_heads': 2,
  'head_dim': 32,
}


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

  from opd_jax.storage import huggingface_config

  raw = {
    k: v
    for k, v in huggingface_config.write(config, dtype='float32').items()
    if k not in ('architectures', 'torch_dtype')
  }
  torch.manual_seed(0)
  settings = transformers.AutoConfig.for_model(raw.pop('model_type'), **raw)
  device = 'cuda' if torch.cuda.is_available() else 'cpu'
  made = transformers.AutoModelForCausalLM.from_config(
    settings, dtype=getattr(torch, config.param_dtype)
  )
  model = made.eval().to(device)
  model.generation_config = transformers.GenerationConfig(
    pad_token_id=0, eos_token_id=None, bos_token_id=2
  )
  return model


def generate_hf(model, prompts, new_tokens: int, calls: int) -> list[float]:
  import torch

  ids = torch.from_numpy(np.asarray(prompts.tokens).astype(np.int64)).to(model.device)
  seconds = []
  for _ in range(calls + 1):
    started = time.perf_counter()
    model.generate(
      ids, attention_mask=torch.ones_like(ids), do_sample=True, top_k=0,
      max_new_tokens=new_tokens, min_new_tokens=new_tokens,
    ).cpu()  # fmt: skip
    seconds.append(time.perf_counter() - started)
  return seconds[1:]


def tunix(tokens: int) -> list[float]:
  """Seconds per call of the peer's own script; its first call compiles."""
  python, script = os.environ.get('TUNIX_PYTHON'), os.environ.get('PEER_TUNIX')
  if not python or not script:
    return []
  out = subprocess.run([python, script], capture_output=True, text=True, check=False).stdout
  rates = [
    float(line.split()[-4 if line.endswith(')') else -2])
    for line in out.splitlines()
    if line.startswith('sample')
  ]
  return [tokens / rate for rate in rates[1:]]


def copy_bandwidth() -> float:
  """Bytes per second, read plus written, of passing over half a gigabyte (eight on an accelerator) in place."""
  step = jax.jit(lambda x: x + 1, donate_argnums=0)  # in place: fresh pages would be timed instead
  size = 2**27 if jax.devices()[0].platform == 'cpu' else 2**31
  x = jax.block_until_ready(step(jnp.zeros(size, jnp.float32)))
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
  print(
    f'{name:26} {middle * 1e3:10.1f} ms  {tokens / middle:9.0f} tokens/s   {middle / base:6.2f} x ours',
    flush=True,
  )


def tiny() -> None:
  config = presets.tiny(**TINY, num_layers=2, max_positions=512, tied=False)
  model, prompts, mine, theirs, peers = model_of(config), prompts_of(8, 32, 2048), [], [], []
  for _ in range(3):  # in turn, so that a slow minute is slow for everybody
    mine += ours(model, prompts, 64, CALLS)
    theirs += generate_hf(other, prompts, 64, CALLS) if other else []
    peers += tunix(512)
  print(
    f'tiny: batch 8, prompt 32, 64 new tokens; medians of {len(mine)}, {len(theirs)} and {len(peers)} calls'
  )
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
  print(
    f'real: Qwen3-0.6B shape, batch 8, prompt 64, 64 new tokens, float32; medians of {len(mine)} calls'
  )
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
  params = {
    **model.params,
    'final_norm': {'scale': jnp.zeros_like(model.params['final_norm']['scale'])},
  }
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
    print(
      f'{name:20} {useful} tokens  {middle:7.2f} s  {rate:9.0f} tokens/s  slot occupancy {share:.1%}'
    )
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


def agreement() -> None:
  """The same rows with 1, 3 and 16 slots, and as the scorer sees them."""
  print(
    'agreement: 16 rows of 64 tokens; rows of equal text, and |log-prob - log-prob| of equal prefixes'
  )
  for dtype in ('float32', 'bfloat16'):
    config = presets.tiny(dtype=dtype, width=256, mlp_width=1024, num_layers=8, vocab_size=2048)
    model, prompts = model_of(config), prompts_of(16, 32, 2048)
    sample = functools.partial(_sample, model, prompts)
    base = sample(16)
    for slots in (1, 3):
      other = sample(slots)
      same = np.cumprod(other.response == base.response, axis=1).astype(bool)
      gaps = np.abs(other.logp - base.logp)[same]
      print(
        f'{dtype:9} {slots:2} slots against 16: {same.all(axis=1).sum():2} of 16 rows equal, {_spread(gaps)}'
      )
    params = transformer.init(
      config, mesh_layout(), jax.random.key(0)
    )  # those of `model_of`, stacked
    scores = scorer.score(
      params, prompts.tokens, prompts.length, base.response, config=config, layout=mesh_layout()
    )
    print(
      f'{dtype:9} sampler against scorer: {_spread(np.abs(base.logp - scores.logp))}', flush=True
    )


def _sample(model, prompts, slots: int):
  settings = sampler.Sampling(budget=64, slots=slots)
  return sampler.generate(model, prompts, jax.random.key(0), sampling=settings)


def _spread(gaps: np.ndarray) -> str:
  return f'mean {gaps.mean():.1e}  99 % {np.quantile(gaps, 0.99):.1e}  max {gaps.max():.1e}'


def decode(
  preset: str = 'qwen3_1p7b', prompt: str = '512', new: str = '512', *batches: str
) -> None:
  """Bytes read per step (weights once, the cache of each row) over time, against the measured bandwidth."""
  config = presets.every()[preset](param_dtype='bfloat16', dtype='bfloat16')
  model, length, tokens = model_of(config), int(prompt), int(new)
  bandwidth = copy_bandwidth()
  print(
    f'{preset} bfloat16, {jax.devices()[0].device_kind}, prompt {length}, {tokens} new; '
    f'a copy moves {bandwidth / 1e12:.2f} TB/s',
    flush=True,
  )
  for batch in map(int, batches or ('64', '256')):
    prompts = prompts_of(batch, length, config.vocab_size)
    whole, prefill = (statistics.median(ours(model, prompts, n, 3)) for n in (tokens, 1))
    step = (whole - prefill) / (tokens - 1)
    row = 2 * config.num_layers * config.num_kv_heads * config.head_dim * 2
    size = transformer.count(config, mesh_layout()) * 2 + batch * row * (length + tokens / 2)
    print(
      f'batch {batch:4}  step {step * 1e3:7.2f} ms  {batch / step:9.0f} tokens/s  reads {size / 1e9:6.2f} GB  '
      f'{size / step / bandwidth:.0%} of the bandwidth',
      flush=True,
    )


def has_torch() -> bool:
  import importlib.util

  return importlib.util.find_spec('torch') is not None


if __name__ == '__main__':
  if sys.argv[1:2] == ['decode']:
    decode(*sys.argv[2:])
    sys.exit()
  for part in sys.argv[1:] or ('tiny', 'real', 'tail', 'agreement'):
    {'tiny': tiny, 'real': real, 'tail': tail, 'agreement': agreement}[part]()
