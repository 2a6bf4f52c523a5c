"""Floor 2. The part of config.json that only Qwen3.5 has: a text model inside one that sees, and layers with a state.

The text model is read and written by itself; what sees, and what drafts several tokens, is left where it is.
"""

from collections.abc import Callable, Mapping
from typing import Any

from opd_jax.models.config import Delta, ModelConfig

FAMILY, WHOLE = 'qwen3_5_text', 'qwen3_5'
SHAPE = {
  'key_heads': 'linear_num_key_heads',
  'value_heads': 'linear_num_value_heads',
  'key_dim': 'linear_key_head_dim',
  'value_dim': 'linear_value_head_dim',
  'kernel': 'linear_conv_kernel_dim',
}
READ = {*SHAPE.values(), 'layer_types', 'full_attention_interval', 'partial_rotary_factor'}
# They concern other heads of the model, or say what the computation does anyway.
HARMLESS = {
  'mamba_ssm_dtype', 'mtp_num_hidden_layers', 'mtp_use_dedicated_embeddings', 'unsloth_fixed_mtp',
}  # fmt: skip
# The gate of the delta-net is silu whatever output_gate_type says: transformers does not read it.
IMPLEMENTED: dict[str, tuple[Any, ...]] = {
  'attn_output_gate': (True,),
  'output_gate_type': ('swish', 'silu'),
}
OUTER = (
  'tie_word_embeddings',
  'quantization_config',
  'bos_token_id',
  'eos_token_id',
  'pad_token_id',
)
PLAIN_ROPE = {'mrope_section', 'mrope_interleaved', 'partial_rotary_factor'}  # as one axis for text


def of_text(tensors: Mapping[str, Any]) -> dict[str, Any]:
  """Tensors of the text model under the names that it has by itself."""
  other = ('model.visual.', 'mtp.')
  whole, alone = 'model.language_model.', 'model.'
  return {
    alone + name.removeprefix(whole) if name.startswith(whole) else name: tensor
    for name, tensor in tensors.items()
    if not name.startswith(other)
  }


def text(raw: Mapping[str, Any]) -> Mapping[str, Any]:
  """The settings of the text model; those of other families are what they are."""
  if raw.get('model_type') != WHOLE:
    return raw
  inner = raw.get('text_config')
  if not isinstance(inner, Mapping):
    raise ValueError(f'hub: config.json of {WHOLE} has no text_config. Download it again.')
  names = raw.get('architectures') or ['Qwen3_5ForConditionalGeneration']
  if names != ['Qwen3_5ForConditionalGeneration']:
    raise ValueError(
      f'hub: config.json of {WHOLE} says architectures={names!r}; Qwen3_5ForConditionalGeneration is read.'
    )
  outer = {key: raw[key] for key in OUTER if raw.get(key) is not None}
  return {**inner, **outer, 'model_type': FAMILY, 'architectures': None}


def fields(raw: Mapping[str, Any], rope: Mapping[str, Any], whole: Callable) -> dict[str, Any]:
  """Fields of `ModelConfig` that this family sets.

  Args:
    rope: its rotary settings.
    whole: reads a whole number above 0.
  """
  layers, kinds = whole('num_hidden_layers'), raw.get('layer_types')
  period = whole('full_attention_interval', 4)
  if not isinstance(kinds, list | None):
    raise ValueError(f'hub: config.json says layer_types={kinds!r}; a list is expected.')
  if kinds is not None:
    period = list(kinds).index('full_attention') + 1 if 'full_attention' in kinds else layers + 1
  if period < 2 or layers % period or kinds not in (None, _kinds(layers, period)):
    raise ValueError(
      f'hub: config.json orders {layers} layers as {kinds or period}; implemented are as many linear_attention layers '
      'before every full_attention one.'
    )
  share = rope.get('partial_rotary_factor', raw.get('partial_rotary_factor', 0.25))
  if isinstance(share, bool) or not isinstance(share, int | float):
    raise ValueError(
      f'hub: config.json says partial_rotary_factor={share!r}; a number is expected.'
    )
  return {
    'delta': Delta(period=period, **{ours: whole(theirs) for ours, theirs in SHAPE.items()}),
    'gated': True,
    'centred_norm': True,
    'rotary_share': float(share),
  }


def _kinds(layers: int, period: int) -> list[str]:
  """The published name of what every layer is."""
  return (['linear_attention'] * (period - 1) + ['full_attention']) * (layers // period)


def written(config: ModelConfig) -> dict[str, Any]:
  """What `fields` reads; nothing for another family."""
  if (delta := config.delta) is None:
    return {}
  return {
    **{theirs: getattr(delta, ours) for ours, theirs in SHAPE.items()},
    'layer_types': _kinds(config.num_layers, delta.period),
    'attn_output_gate': True,
    'rope_parameters': {
      'rope_type': 'default',
      'rope_theta': config.rope_theta,
      'partial_rotary_factor': config.rotary_share,
    },
  }
