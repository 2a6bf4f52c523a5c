"""The grid on which our models are held against `transformers`, and weights that both sides can make alone.

A weight is drawn from a stream seeded by its published name, so a golden file holds a config, tokens'
seed and logits, no weights: the same check runs with torch (live) and without (golden).
"""

import dataclasses
import json
import zlib
from pathlib import Path

import jax
import numpy as np

from opd_jax.models import transformer
from opd_jax.models.config import ModelConfig
from opd_jax.sharding import Layout
from opd_jax.storage import huggingface_config, parameter_names

GOLDEN = Path(__file__).parent / 'golden' / 'parity.npz'
VOCABULARY, START = 64, np.array([0, 5], np.int32)  # row 0 unpadded, row 1 left-padded
TOLERANCE = 2e-5
COMMON = {
  'vocab_size': VOCABULARY,
  'hidden_size': 32,
  'num_hidden_layers': 2,
  'num_attention_heads': 4,
  'intermediate_size': 48,
  'max_position_embeddings': 64,
}
FAMILIES = {
  'qwen3': {'head_dim': 16},
  'qwen3_moe': {
    'head_dim': 16,
    'num_experts': 8,
    'num_experts_per_tok': 2,
    'moe_intermediate_size': 16,
  },
  'qwen3_5_text': {
    'num_hidden_layers': 6,
    'rms_norm_eps': 1e-3,  # a head that says nearly nothing is blown up by its norm, and its rounding with it
    'layer_types': ['linear_attention', 'linear_attention', 'full_attention'] * 2,
    'head_dim': 16,
    'linear_num_key_heads': 2,
    'linear_num_value_heads': 4,
    'linear_key_head_dim': 16,
    'linear_value_head_dim': 8,
    'rope_parameters': {'rope_type': 'default', 'rope_theta': 1e4, 'partial_rotary_factor': 0.25},
  },
  'qwen2': {'rope_parameters': {'rope_type': 'default', 'rope_theta': 1e6}},
  'llama': {
    'rope_parameters': {
      'rope_type': 'llama3',
      'rope_theta': 500.0,
      'factor': 8.0,
      'low_freq_factor': 1.0,
      'high_freq_factor': 4.0,
      'original_max_position_embeddings': 16,
    }
  },
}


@dataclasses.dataclass(frozen=True)
class Case:
  family: str
  tied: bool
  group: int  # query heads per key-value head
  length: int = 12

  def __str__(self) -> str:
    return f'{self.family}-{"tied" if self.tied else "untied"}-gqa{self.group}{"-long" if self.length > 12 else ""}'

  @property
  def settings(self) -> dict:
    extra = {'norm_topk_prob': self.group != 2} if self.family == 'qwen3_moe' else {}
    heads = {'num_key_value_heads': COMMON['num_attention_heads'] // self.group}
    table = {'max_position_embeddings': max(64, self.length)}
    return {
      **COMMON,
      **FAMILIES[self.family],
      **heads,
      **extra,
      **table,
      'tie_word_embeddings': self.tied,
    }


CASES = [
  Case(family, tied, group) for family in FAMILIES for tied in (True, False) for group in (1, 2, 4)
]
# Errors of the rotary table grow with the position: long rows see them, short ones do not.
CASES += [Case('qwen2', True, 2, length=4096), Case('llama', True, 2, length=4096)]
# More tokens than one chunk of a delta-net.
CASES += [Case('qwen3_5_text', True, 2, length=200)]


def tokens(length: int) -> np.ndarray:
  return np.random.RandomState(1).randint(0, VOCABULARY, (len(START), length)).astype(np.int32)


def weight_of(name: str, shape: tuple[int, ...]) -> np.ndarray:
  """The same numbers for the same published name, wherever they are made."""
  stream = np.random.RandomState(zlib.crc32(name.encode()))
  values = (
    stream.uniform(0.5, 1.5, shape) if 'norm' in name else 0.3 * stream.standard_normal(shape)
  )
  return values.astype(np.float32)


def torch_model(case: Case):
  """The model of `transformers` with the weights of `weight_of`."""
  import torch
  import transformers

  config = transformers.AutoConfig.for_model(case.family, **case.settings)
  model = transformers.AutoModelForCausalLM.from_config(config, attn_implementation='eager').eval()
  names_here = dict(model.named_parameters())
  with torch.no_grad():
    for name, parameter in names_here.items():
      parameter.copy_(torch.from_numpy(_fused(name, tuple(parameter.shape))))
  return model


def _fused(name: str, shape: tuple[int, ...]) -> np.ndarray:
  """transformers 5 holds experts fused in memory and saves them one by one, under the published names."""
  prefix, _, last = name.rpartition('.experts.')
  if last == 'gate_up_proj':
    half = (shape[1] // 2, shape[2])
    parts = [
      np.concatenate(
        [weight_of(f'{prefix}.experts.{e}.{part}_proj.weight', half) for part in ('gate', 'up')]
      )
      for e in range(shape[0])
    ]
    return np.stack(parts)
  if last == 'down_proj':
    return np.stack(
      [weight_of(f'{prefix}.experts.{e}.down_proj.weight', shape[1:]) for e in range(shape[0])]
    )
  return weight_of(name, shape)


def torch_logits(case: Case) -> np.ndarray:
  import torch

  mask = (np.arange(case.length) >= START[:, None]).astype(np.int64)
  positions = np.maximum(np.cumsum(mask, axis=1) - 1, 0)
  with torch.no_grad():
    out = torch_model(case)(
      torch.from_numpy(tokens(case.length).astype(np.int64)),
      attention_mask=torch.from_numpy(mask),
      position_ids=torch.from_numpy(positions),
    )
  return out.logits.numpy()


def our_params(config: ModelConfig, layout: Layout) -> dict:
  filled: dict[str, np.ndarray] = {}
  for path, leaf in parameter_names.flat(transformer.abstract(config, layout)).items():
    filled[path] = np.zeros(leaf.shape, np.float32)
  for piece in parameter_names.pieces(config, layout):
    filled[piece.path][piece.at] = piece.ours(weight_of(piece.name, piece.published_shape))
  return parameter_names.nested(filled)


def our_logits(raw: dict, layout: Layout, length: int) -> np.ndarray:
  """Our logits for the config.json `raw`."""
  config = huggingface_config.parse(raw)

  @jax.jit
  def run(params, tokens, start):
    model = transformer.bind(config, layout, params)
    hidden = model(tokens, start=start)
    return transformer.logits_of(hidden, model.head())

  return np.asarray(run(our_params(config, layout), tokens(length), START))


def gap(ours: np.ndarray, theirs: np.ndarray) -> float:
  """max |difference| over max |logit|, where a row is not padding."""
  real = np.arange(ours.shape[1]) >= START[:, None]
  return float(np.abs(ours - theirs)[real].max() / np.abs(theirs[real]).max())


def write_golden(path: Path = GOLDEN) -> None:
  """Needs torch. Keeps the last columns only: they depend on all the others."""
  content = {}
  for case in CASES:
    raw = torch_model(case).config.to_diff_dict() | case.settings | {'model_type': case.family}
    content[f'{case}/config'] = np.array(json.dumps(raw))
    content[f'{case}/logits'] = torch_logits(case)[:, -4:]
  np.savez_compressed(path, **content)


def read_golden(case: Case) -> tuple[dict, np.ndarray]:
  with np.load(GOLDEN) as content:
    return json.loads(str(content[f'{case}/config'])), content[f'{case}/logits']
