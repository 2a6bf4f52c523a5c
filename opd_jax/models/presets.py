"""Floor 1. The models of the papers, as functions: `presets.qwen3_1p7b()`.

Each takes the fields of `ModelConfig` as overrides: `qwen3_8b(param_dtype='bfloat16', remat='full')`.
Shapes are those of the published config.json files; `config_test.py` compares each with the
published number of parameters.
"""

import dataclasses
import functools
import inspect
import sys
from collections.abc import Callable
from typing import Any

from opd_jax.models.config import Delta, Experts, ModelConfig, RopeScaling

_qwen3 = functools.partial(
  ModelConfig,
  family='qwen3',
  vocab_size=151_936,
  num_kv_heads=8,
  head_dim=128,
  max_positions=40_960,
  rope_theta=1e6,
  qk_norm=True,
)
_qwen3p5 = functools.partial(
  ModelConfig,
  family='qwen3_5_text',
  vocab_size=248_320,
  head_dim=256,
  max_positions=262_144,
  rope_theta=1e7,
  rotary_share=0.25,
  qk_norm=True,
  gated=True,
  centred_norm=True,
)
_qwen2 = functools.partial(
  ModelConfig, family='qwen2', max_positions=32_768, rope_theta=1e6, qkv_bias=True, head_dim=128
)
_llama3 = functools.partial(
  ModelConfig,
  family='llama',
  vocab_size=128_256,
  num_kv_heads=8,
  max_positions=131_072,
  rope_theta=5e5,
  norm_epsilon=1e-5,
)


def _llama3_scaling(factor: float) -> RopeScaling:
  return RopeScaling(
    factor=factor, low_frequency_factor=1.0, high_frequency_factor=4.0, original_max_positions=8192
  )


def _with(config: ModelConfig, overrides: dict[str, Any]) -> ModelConfig:
  unknown = overrides.keys() - {field.name for field in dataclasses.fields(ModelConfig)}
  if unknown:
    raise ValueError(
      f'presets: ModelConfig has no field {sorted(unknown)}; see opd_jax/models/config.py.'
    )
  return dataclasses.replace(config, **overrides)


def tiny(**overrides: Any) -> ModelConfig:
  """Two layers, 64 wide, 320 tokens: room for the byte tokenizer. For tests, demos and laptops."""
  config = ModelConfig(
    family='qwen3',
    vocab_size=320,
    width=64,
    num_layers=2,
    num_heads=4,
    num_kv_heads=2,
    head_dim=16,
    mlp_width=128,
    max_positions=2048,
    rope_theta=1e4,
    qk_norm=True,
    tied=True,
  )
  return _with(config, overrides)


def qwen3_0p6b(**overrides: Any) -> ModelConfig:
  return _with(
    _qwen3(width=1024, num_layers=28, num_heads=16, mlp_width=3072, tied=True), overrides
  )


def qwen3_1p7b(**overrides: Any) -> ModelConfig:
  return _with(
    _qwen3(width=2048, num_layers=28, num_heads=16, mlp_width=6144, tied=True), overrides
  )


def qwen3_4b(**overrides: Any) -> ModelConfig:
  return _with(
    _qwen3(width=2560, num_layers=36, num_heads=32, mlp_width=9728, tied=True), overrides
  )


def qwen3_8b(**overrides: Any) -> ModelConfig:
  return _with(_qwen3(width=4096, num_layers=36, num_heads=32, mlp_width=12_288), overrides)


def qwen3_14b(**overrides: Any) -> ModelConfig:
  return _with(_qwen3(width=5120, num_layers=40, num_heads=40, mlp_width=17_408), overrides)


def qwen3_32b(**overrides: Any) -> ModelConfig:
  return _with(_qwen3(width=5120, num_layers=64, num_heads=64, mlp_width=25_600), overrides)


def qwen3_30b_a3b(**overrides: Any) -> ModelConfig:
  """Mixture of 128 experts, 8 per token: the commonest teacher in the papers."""
  experts = Experts(count=128, per_token=8, width=768, normalise=True)
  config = _qwen3(
    family='qwen3_moe', width=2048, num_layers=48, num_heads=32, num_kv_heads=4, mlp_width=6144
  )
  return _with(dataclasses.replace(config, experts=experts), overrides)


def _delta(value_heads: int) -> Delta:
  return Delta(
    period=4, key_heads=16, value_heads=value_heads, key_dim=128, value_dim=128, kernel=4
  )


def qwen3p5_0p8b(**overrides: Any) -> ModelConfig:
  """Three of four layers keep a state instead of keys and values. Text only, as all of Qwen3.5 here."""
  config = _qwen3p5(
    width=1024, num_layers=24, num_heads=8, num_kv_heads=2, mlp_width=3584, delta=_delta(16)
  )
  return _with(dataclasses.replace(config, tied=True), overrides)


def qwen3p5_4b(**overrides: Any) -> ModelConfig:
  config = _qwen3p5(
    width=2560, num_layers=32, num_heads=16, num_kv_heads=4, mlp_width=9216, delta=_delta(32)
  )
  return _with(dataclasses.replace(config, tied=True), overrides)


def qwen3p5_9b(**overrides: Any) -> ModelConfig:
  config = _qwen3p5(
    width=4096, num_layers=32, num_heads=16, num_kv_heads=4, mlp_width=12_288, delta=_delta(32)
  )
  return _with(config, overrides)


def qwen3p5_27b(**overrides: Any) -> ModelConfig:
  config = _qwen3p5(
    width=5120, num_layers=64, num_heads=24, num_kv_heads=4, mlp_width=17_408, delta=_delta(48)
  )
  return _with(config, overrides)


def qwen2p5_0p5b(**overrides: Any) -> ModelConfig:
  config = _qwen2(
    vocab_size=151_936, width=896, num_layers=24, num_heads=14, num_kv_heads=2, mlp_width=4864
  )
  return _with(dataclasses.replace(config, head_dim=64, tied=True), overrides)


def qwen2p5_1p5b(**overrides: Any) -> ModelConfig:
  config = _qwen2(
    vocab_size=151_936, width=1536, num_layers=28, num_heads=12, num_kv_heads=2, mlp_width=8960
  )
  return _with(dataclasses.replace(config, tied=True), overrides)


def qwen2p5_3b(**overrides: Any) -> ModelConfig:
  config = _qwen2(
    vocab_size=151_936, width=2048, num_layers=36, num_heads=16, num_kv_heads=2, mlp_width=11_008
  )
  return _with(dataclasses.replace(config, tied=True), overrides)


def qwen2p5_7b(**overrides: Any) -> ModelConfig:
  config = _qwen2(
    vocab_size=152_064, width=3584, num_layers=28, num_heads=28, num_kv_heads=4, mlp_width=18_944
  )
  return _with(config, overrides)


def qwen2p5_14b(**overrides: Any) -> ModelConfig:
  config = _qwen2(
    vocab_size=152_064, width=5120, num_layers=48, num_heads=40, num_kv_heads=8, mlp_width=13_824
  )
  return _with(config, overrides)


def llama3p2_1b(**overrides: Any) -> ModelConfig:
  config = _llama3(width=2048, num_layers=16, num_heads=32, head_dim=64, mlp_width=8192, tied=True)
  return _with(dataclasses.replace(config, rope_scaling=_llama3_scaling(32.0)), overrides)


def llama3p2_3b(**overrides: Any) -> ModelConfig:
  config = _llama3(width=3072, num_layers=28, num_heads=24, head_dim=128, mlp_width=8192, tied=True)
  return _with(dataclasses.replace(config, rope_scaling=_llama3_scaling(32.0)), overrides)


def llama3p1_8b(**overrides: Any) -> ModelConfig:
  config = _llama3(width=4096, num_layers=32, num_heads=32, head_dim=128, mlp_width=14_336)
  return _with(dataclasses.replace(config, rope_scaling=_llama3_scaling(8.0)), overrides)


def every() -> dict[str, Callable[..., ModelConfig]]:
  """Every preset by name: the public functions of this file, discovered."""
  functions = inspect.getmembers(sys.modules[__name__], inspect.isfunction)
  return {name: f for name, f in functions if not name.startswith('_') and f is not every}
