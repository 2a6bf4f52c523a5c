"""Floor 2. config.json of the Hugging Face hub <-> `ModelConfig`. Total: every key is read, known to be
harmless, or refused by name with its value; a model is never run without a feature it was trained with."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from opd_jax.models.config import Experts, ModelConfig, RopeScaling
from opd_jax.storage import hybrid_config

ARCHITECTURES = {
  'qwen3': 'Qwen3ForCausalLM',
  'qwen3_moe': 'Qwen3MoeForCausalLM',
  hybrid_config.FAMILY: 'Qwen3_5ForCausalLM',
  'qwen2': 'Qwen2ForCausalLM',
  'llama': 'LlamaForCausalLM',
}

# Keys that become fields.
READ = {
  'architectures', 'model_type', 'vocab_size', 'hidden_size', 'num_hidden_layers', 'num_attention_heads',
  'num_key_value_heads', 'head_dim', 'intermediate_size', 'max_position_embeddings', 'rope_theta', 'rope_scaling',
  'rope_parameters', 'rms_norm_eps', 'tie_word_embeddings', 'num_experts', 'num_local_experts',
  'num_experts_per_tok', 'moe_intermediate_size', 'norm_topk_prob', 'bos_token_id', 'eos_token_id', 'pad_token_id',
}  # fmt: skip
# Keys that say how a model was made, trained or served, and do not change its logits.
HARMLESS = {
  '_name_or_path', 'transformers_version', 'torch_dtype', 'dtype', 'use_cache', 'initializer_range',
  'attention_dropout', 'router_aux_loss_coef',
  'output_router_logits', 'pretraining_tp', 'output_attentions', 'output_hidden_states', 'return_dict',
  'id2label', 'label2id', 'chunk_size_feed_forward', 'is_encoder_decoder', 'problem_type', 'auto_map',
  '_attn_implementation_autoset', 'unsloth_fixed', 'unsloth_version',
}  # fmt: skip
# Keys that change the computation: the only values we implement. Absent and null are fine.
IMPLEMENTED: dict[str, tuple[Any, ...]] = {
  'hidden_act': ('silu', 'swish'),
  'partial_rotary_factor': (1.0,),
  'attention_bias': (False,),
  'mlp_bias': (False,),
  'use_sliding_window': (False,),
  'decoder_sparse_step': (1,),
  'mlp_only_layers': ([],),
}
# Keys without meaning while `use_sliding_window` is false, which IMPLEMENTED enforces.
WINDOW = {'sliding_window', 'max_window_layers', 'layer_types'}
ROPE_LLAMA3 = {
  'factor': 'factor',
  'low_freq_factor': 'low_frequency_factor',
  'high_freq_factor': 'high_frequency_factor',
  'original_max_position_embeddings': 'original_max_positions',
}


def _advice(folder: Path) -> str:
  """Where a person finds the model who has named the folder of a run."""
  student = Path(folder) / 'student'
  return f' The model of that run is {student}.' if student.is_dir() else ''


def read(folder: Path) -> ModelConfig:
  """The `ModelConfig` of a folder's config.json."""
  file = folder / 'config.json'
  if not file.is_file():
    raise ValueError(
      f'hub: {folder} has no config.json, so it is not a model folder of transformers.{_advice(folder)}'
    )
  try:
    raw = json.loads(file.read_text())
  except json.JSONDecodeError as error:
    raise ValueError(f'hub: {file} is not valid JSON ({error}). Download it again.') from error
  try:
    return parse(raw)
  except ValueError as error:
    raise ValueError(f'{error} It lies in {folder}.') from error


def _checked(raw: Any) -> dict[str, Any]:
  """Returns the entries that are not null; refuses an architecture that is not implemented."""
  if not isinstance(raw, Mapping):
    raise ValueError(
      f'hub: config.json holds a {type(raw).__name__} instead of an object. Download it again.'
    )
  raw = hybrid_config.text(raw)
  raw = {key: value for key, value in raw.items() if value is not None}  # null means absent
  family = raw.get('model_type')
  if family not in ARCHITECTURES:
    raise ValueError(
      f'hub: unknown architecture: model_type={family!r}, architectures={raw.get("architectures")}. '
      f'Implemented: {", ".join(ARCHITECTURES)}.'
    )
  _refuse_unimplemented(raw, family)
  essential = (
    'vocab_size',
    'hidden_size',
    'num_hidden_layers',
    'num_attention_heads',
    'intermediate_size',
  )
  if missing := sorted(key for key in essential if key not in raw):
    raise ValueError(
      f'hub: config.json lacks {", ".join(missing)}; the model cannot be built without them.'
    )
  return raw


def parse(raw: Any) -> ModelConfig:
  """A config.json, as a dict, in the spelling of transformers 4 or 5."""
  raw = _checked(raw)
  family = raw['model_type']
  rope, heads = _rope(raw), _number(raw, 'num_attention_heads', int)
  whole = lambda key, default=None: _number(raw, key, int, default)
  real = lambda key, default: float(_number(raw, key, (int, float), default))
  return ModelConfig(
    family=family,
    vocab_size=whole('vocab_size'),
    width=whole('hidden_size'),
    num_layers=whole('num_hidden_layers'),
    num_heads=heads,
    num_kv_heads=whole('num_key_value_heads', heads),
    head_dim=whole('head_dim', whole('hidden_size') // heads),
    mlp_width=whole('intermediate_size'),
    max_positions=whole('max_position_embeddings', 2048 if family == 'llama' else 32_768),
    rope_theta=float(_number(rope, 'rope_theta', (int, float))),
    rope_scaling=_rope_scaling(rope, family),
    norm_epsilon=real('rms_norm_eps', 1e-6),
    qk_norm=family.startswith('qwen3'),
    qkv_bias=family == 'qwen2',
    tied=bool(raw.get('tie_word_embeddings', False)),
    experts=_experts(raw) if family == 'qwen3_moe' else None,
    **(hybrid_config.fields(raw, rope, whole) if family == hybrid_config.FAMILY else {}),
    begin_token=raw.get('bos_token_id'),
    end_tokens=end_tokens(raw),
    pad_token=raw.get('pad_token_id'),
  )


def end_tokens(raw: Mapping[str, Any]) -> tuple[int, ...]:
  """`eos_token_id`: published as one number or as a list of them."""
  ends = raw.get('eos_token_id', [])
  return tuple(ends) if isinstance(ends, list) else (ends,)


def _number(raw: Mapping[str, Any], key: str, kind: Any, default: Any = None) -> Any:
  """A positive number of its kind; a config.json may hold anything."""
  value = raw.get(key, default)
  if isinstance(value, bool) or not isinstance(value, kind) or not value > 0:
    what = 'a whole number' if kind is int else 'a number'
    raise ValueError(f'hub: config.json says {key}={value!r}; {what} above 0 is expected.')
  return value


def _rope(raw: Mapping[str, Any]) -> dict[str, Any]:
  """Returns rotary settings in the spelling of transformers 5; transformers 4 keeps them under two keys."""
  for key in ('rope_parameters', 'rope_scaling'):
    if not isinstance(raw.get(key, {}), Mapping):
      raise ValueError(f'hub: config.json says {key}={raw[key]!r}; an object is expected.')
  theta = raw.get('rope_theta', 10_000.0)
  return {'rope_theta': theta, **(raw.get('rope_parameters') or raw.get('rope_scaling') or {})}


def _refuse_unimplemented(raw: Mapping[str, Any], family: str) -> None:
  architectures = raw.get('architectures', [ARCHITECTURES[family]])
  problems, hybrid = [], family == hybrid_config.FAMILY
  known, only = READ | HARMLESS | WINDOW, IMPLEMENTED
  if hybrid:
    known = known | hybrid_config.READ | hybrid_config.HARMLESS
    only = {**IMPLEMENTED, **hybrid_config.IMPLEMENTED}
  if architectures != [ARCHITECTURES[family]]:
    problems.append(f'architectures={architectures!r} (implemented: {ARCHITECTURES[family]})')
  for key, value in raw.items():
    if key in known:
      continue
    allowed = only.get(key)
    if allowed is None and value not in (False, [], {}, ''):
      problems.append(f'{key}={value!r} (unknown field)')
    elif allowed is not None and value not in allowed:
      problems.append(f'{key}={value!r} (implemented: {", ".join(map(repr, allowed))})')
  if problems:
    raise ValueError(
      'hub: config.json asks for what is not implemented: ' + '; '.join(problems) + '. '
      'Use another checkpoint, or list a field that cannot change the logits in opd_jax/storage/huggingface_config.py.'
    )


def _rope_scaling(rope: Mapping[str, Any], family: str) -> RopeScaling | None:
  kind = rope.get('rope_type', rope.get('type', 'default'))
  plain = {'rope_type', 'type', 'rope_theta'}
  plain |= hybrid_config.PLAIN_ROPE if family == hybrid_config.FAMILY else set()
  extra = {key: value for key, value in rope.items() if key not in plain}
  if kind == 'default' and not any(value is not None for value in extra.values()):
    return None
  if kind != 'llama3' or set(extra) != set(ROPE_LLAMA3):
    raise ValueError(
      f"hub: rope scaling {dict(rope)} is not implemented; 'default' and 'llama3' with {sorted(ROPE_LLAMA3)} are."
    )
  values = {ours: _number(extra, theirs, (int, float)) for theirs, ours in ROPE_LLAMA3.items()}
  positions = int(values.pop('original_max_positions'))
  return RopeScaling(
    **{name: float(value) for name, value in values.items()}, original_max_positions=positions
  )


def _experts(raw: Mapping[str, Any]) -> Experts:
  count = raw.get('num_experts', raw.get('num_local_experts'))
  needed = {
    'num_experts': count,
    **{key: raw.get(key) for key in ('num_experts_per_tok', 'moe_intermediate_size')},
  }
  missing = sorted(key for key, value in needed.items() if value is None)
  if missing:
    raise ValueError(f'hub: config.json of a mixture of experts lacks {", ".join(missing)}.')
  return Experts(
    count=_number(needed, 'num_experts', int),
    per_token=_number(needed, 'num_experts_per_tok', int),
    width=_number(needed, 'moe_intermediate_size', int),
    normalise=bool(raw.get('norm_topk_prob', False)),
  )


def write(config: ModelConfig, *, dtype: str) -> dict[str, Any]:
  """A config.json in the spelling that transformers 4 and 5 both read."""
  raw = {
    'architectures': [ARCHITECTURES[config.family]],
    'model_type': config.family,
    'vocab_size': config.vocab_size,
    'hidden_size': config.width,
    'num_hidden_layers': config.num_layers,
    'num_attention_heads': config.num_heads,
    'num_key_value_heads': config.num_kv_heads,
    'head_dim': config.head_dim,
    'intermediate_size': config.mlp_width,
    'max_position_embeddings': config.max_positions,
    'rope_theta': config.rope_theta,
    'rope_scaling': None,
    'rms_norm_eps': config.norm_epsilon,
    'tie_word_embeddings': config.tied,
    'hidden_act': 'silu',
    'attention_dropout': 0.0,
    'torch_dtype': dtype,
    # Written even where they are None: transformers would fill an absent key with the family's own number.
    'bos_token_id': config.begin_token,
    'eos_token_id': config.end_tokens[0]
    if len(config.end_tokens) == 1
    else list(config.end_tokens) or None,
    'pad_token_id': config.pad_token,
  }
  if config.family != 'qwen2':  # always biased, and its reference code takes no such key
    raw['attention_bias'] = False
  if config.rope_scaling is not None:
    scaling = {theirs: getattr(config.rope_scaling, ours) for theirs, ours in ROPE_LLAMA3.items()}
    raw['rope_scaling'] = {'rope_type': 'llama3', **scaling}
  if config.experts is not None:
    raw |= {
      'num_experts': config.experts.count,
      'num_experts_per_tok': config.experts.per_token,
      'moe_intermediate_size': config.experts.width,
      'norm_topk_prob': config.experts.normalise,
      'decoder_sparse_step': 1,
      'mlp_only_layers': [],
    }
  return raw | hybrid_config.written(config)
