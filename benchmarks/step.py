"""A whole OPD step (sample, score, weigh, update) against TRL's DistillationTrainer and Tunix glued by hand.

    TRL_PYTHON=… PEER_TRL=trl_distill_cpu.py TUNIX_PYTHON=… python benchmarks/step.py [STEPS]

One shape for all: batch 8, prompt 32, 64 new tokens, vocabulary 2,048; student 2 layers x 128, teacher 4 layers x 256;
float32; reverse KL over the whole vocabulary, AdamW. Medians of the steps after two of warm-up.
"""

import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import jax
import numpy as np

from opd_jax import host, judges
from opd_jax.data.problems import Problem, Task, question
from opd_jax.data.sources import Source
from opd_jax.data.templates import Template
from opd_jax.data.tokenizers import CharacterTokenizer
from opd_jax.inference.decoding import Decoding, Forbid
from opd_jax.inference.sampler import Sampling
from opd_jax.losses.divergences import ReverseKL
from opd_jax.methods.gkd import gkd
from opd_jax.models import presets, transformer
from opd_jax.sharding import mesh_layout
from opd_jax.storage import orbax_folder
from opd_jax.training import optimisers, verbs
from opd_jax.training.experiment import Experiment, Stage
from opd_jax.training.runtime import build_runtime
from opd_jax.training.state import RunPosition, initial_state

V, BATCH, PROMPT, NEW = 2048, 8, 32, 64
ALPHABET = ''.join(chr(0x4E00 + number) for number in range(V - len(CharacterTokenizer.SPECIALS)))


class Words(Source):
  """Random prompts."""

  def __len__(self) -> int:
    return 256

  def name(self, number: int) -> str:
    return f'prompt {number}'

  def __getitem__(self, number: int):
    picks = np.random.RandomState(number).randint(0, len(ALPHABET), PROMPT - 1)
    return {'text': ''.join(ALPHABET[pick] for pick in picks)}


def model(width: int, layers: int):
  return presets.tiny(
    vocab_size=V, width=width, num_layers=layers, num_heads=4, num_kv_heads=2, head_dim=width // 4,
    mlp_width=2 * width, tied=False,
  )  # fmt: skip


def ours(steps: int) -> dict[str, list[float]]:
  """Seconds of each verb in every step."""
  with tempfile.TemporaryDirectory() as folder:
    config, layout = model(256, 4), mesh_layout()
    orbax_folder.save(
      f'{folder}/teacher', config, transformer.init(config, layout, jax.random.key(1))
    )
    never = V - 1
    stage = Stage(
      method=gkd(divergence=ReverseKL(), student_fraction=1.0),
      task=Task(name='words', source=Words(), read=lambda row: Problem(question(row['text']))),
      steps=steps, prompts=BATCH, optimiser=optimisers.adamw(rate=1e-6), template=Template(chat=False),
      sampling=Sampling(decoding=Decoding(rules=(Forbid((never,)),), stop_tokens=(never,)), budget=NEW, slots=BATCH),
      judges={'teacher': judges.frozen(f'{folder}/teacher')},
    )  # fmt: skip
    tokenizer = CharacterTokenizer(ALPHABET)
    experiment = Experiment(
      model=model(128, 2), layout=layout, stages=(stage,), tokenizer=tokenizer
    )
    runtime = build_runtime(experiment, 0)
  params = transformer.init(experiment.model, layout, jax.random.key(0))
  state, stream = initial_state(experiment, stage, params), runtime.stream()
  seconds: dict[str, list[float]] = {'sample': [], 'score': [], 'weigh': [], 'update': []}
  for number in range(steps):
    position, weights = RunPosition(step=number, rows=number * BATCH), state.weights
    clock = [time.perf_counter()]
    responses = verbs.sample(runtime, weights, stream.take(BATCH), position)
    clock.append(time.perf_counter())
    evidence = jax.block_until_ready(verbs.score(runtime, weights, responses, position))
    clock.append(time.perf_counter())
    batch, _ = jax.block_until_ready(verbs.weigh(runtime, weights, evidence))
    clock.append(time.perf_counter())
    state, metrics = verbs.update(runtime, state, batch)
    clock.append(time.perf_counter())
    assert metrics['tokens'] == BATCH * NEW
    for verb, before, after in zip(seconds, clock, clock[1:], strict=False):
      seconds[verb].append(after - before)
  return seconds


def products() -> float:
  """Seconds of the bare matrix products of a step, each alone in a loop at its shape: no step is faster."""

  def seconds(rows: int, inner: int, columns: int, count: int = 20) -> float:
    left, right = (
      jax.random.normal(jax.random.key(0), shape) for shape in ((rows, inner), (inner, columns))
    )
    body = lambda _, out: out + 1e-9 * (out[:, :1] + left) @ right
    run = jax.jit(lambda: jax.lax.fori_loop(0, count, body, jax.numpy.zeros((rows, columns))))
    times = []
    for _ in range(8):
      began = time.perf_counter()
      jax.block_until_ready(run())
      times.append(time.perf_counter() - began)
    return statistics.median(times[1:]) / count

  def block(rows: int, width: int) -> float:
    attention = 2 * seconds(rows, width, width) + 2 * seconds(rows, width, width // 2)
    return attention + 3 * seconds(rows, width, 2 * width)

  tokens, answers = BATCH * (PROMPT + NEW), BATCH * NEW
  teacher = 4 * block(tokens, 256) + 2 * seconds(answers, 256, V)
  student = 3 * (2 * block(tokens, 128) + seconds(answers, 128, V))
  return teacher + student + NEW * (2 * block(BATCH, 128) + seconds(BATCH, 128, V))


TUNIX = """
import sys, time
import jax, jax.numpy as jnp, numpy as np, optax
from flax import nnx
from tunix.models.qwen3 import model as qwen
from tunix.generate import sampler as S
from tunix.distillation import distillation_trainer as D, strategies
V, B, P, C, N = map(int, sys.argv[1:])
def make(width, layers, seed):
  config = qwen.ModelConfig(num_layers=layers, vocab_size=V, embed_dim=width, hidden_dim=2 * width, num_heads=4,
    head_dim=width // 4, num_kv_heads=2, rope_theta=10000, norm_eps=1e-6)
  return qwen.Qwen3(config, rngs=nnx.Rngs(seed)), config
(student, config), (teacher, _) = make(128, 2, 0), make(256, 4, 1)
class Tokens:
  encode = lambda self, text, **k: [int(word[1:]) for word in text.split()]
  decode = lambda self, ids, **k: ' '.join(f'w{i}' for i in ids)
  bos_id = lambda self: 2
  eos_id = lambda self: 1
  pad_id = lambda self: 0
sampler = S.Sampler(transformer=student, tokenizer=Tokens(), cache_config=S.CacheConfig(cache_size=160,
  num_layers=config.num_layers, num_kv_heads=config.num_kv_heads, head_dim=config.head_dim))
rng, begun = np.random.default_rng(0), []
def batches():
  for step in range(N):
    begun.append(time.perf_counter())
    ids = rng.integers(4, V, (B, P))
    text = [' '.join(f'w{i}' for i in row) for row in ids]
    sampler.transformer_state = nnx.state(student, nnx.Param)
    out = sampler(text, max_generation_steps=C, max_prompt_length=P, temperature=1.0, top_p=1.0, seed=step,
      pad_output=True, eos_tokens=[V - 1])
    tokens = np.concatenate([ids, np.asarray(out.tokens)[:, -C:]], axis=1).astype(np.int32)
    yield D.TrainingInput(input_tokens=jnp.asarray(tokens), input_mask=jnp.ones((B, P + C), jnp.int32))
def forward(model, input_tokens, input_mask, positions, attention_mask):
  return model(input_tokens, positions, None, attention_mask)[0][:, :-1]
labels = lambda input_tokens, input_mask, **k: jax.nn.one_hot(input_tokens[:, 1:], V) * input_mask[:, 1:, None]
strategy = strategies.LogitStrategy(student_forward_fn=forward, teacher_forward_fn=forward, labels_fn=labels,
  temperature=1.0, alpha=1.0)
L = P + C
arguments = lambda x: dict(input_tokens=x.input_tokens, input_mask=x.input_mask,
  positions=jnp.broadcast_to(jnp.arange(L), (B, L)),
  attention_mask=jnp.broadcast_to(jnp.tril(jnp.ones((L, L), bool)), (B, L, L)))
trainer = D.DistillationTrainer(student, teacher, strategy, optax.adamw(1e-6),
  D.TrainingConfig(eval_every_n_steps=1000, max_steps=N)).with_gen_model_input_fn(arguments)
trainer.train(batches())
print('steps', *(b - a for a, b in zip(begun, begun[1:])))
"""


def peer(name: str, python: str, code: list[str], pattern: str, **environment: str) -> float | None:
  """Median seconds of a step."""
  if not os.environ.get(python):
    print(f'{name}: not measured; {python} names an interpreter that has it')
    return None
  known = {**os.environ, 'JAX_PLATFORMS': 'cpu', **environment}
  done = subprocess.run([os.environ[python], *code], capture_output=True, text=True, env=known)
  found = re.search(pattern, done.stdout)
  if found is None:
    print(f'{name}: failed: {(done.stderr.strip().splitlines() or ["no output"])[-1]}')
    return None
  return statistics.median([float(number) for number in re.findall(r'[\d.]+', found[1])][2:])


if __name__ == '__main__':
  count = int(sys.argv[1]) if len(sys.argv) > 1 else 23
  host.keep_memory()  # as `opd train` does
  seconds = {verb: statistics.median(times[2:]) for verb, times in ours(count).items()}
  whole = sum(seconds.values())
  split = ', '.join(f'{verb} {each * 1e3:.1f} ms' for verb, each in seconds.items())
  print(f'ours                     {whole * 1e3:8.1f} ms a step    ({split})')
  print(f'its bare matrix products {products() * 1e3:8.1f} ms a step')
  script = os.environ.get('PEER_TRL', str(Path('trl_distill_cpu.py')))
  others = {
    'TRL DistillationTrainer': peer(
      'TRL', 'TRL_PYTHON', [script, 'distill'], r'step s \[(.*?)\]', STEPS=str(count)
    ),
    'Tunix, glued by hand': peer(
      'Tunix',
      'TUNIX_PYTHON',
      ['-c', TUNIX, *map(str, (V, BATCH, PROMPT, NEW, count))],
      r'steps (.*)',
    ),
  }
  for name, each in others.items():
    if each is not None:
      print(f'{name:24s} {each * 1e3:8.1f} ms a step    {each / whole:.2f} x ours')
