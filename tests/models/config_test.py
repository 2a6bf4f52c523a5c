import dataclasses

import pytest

from opd_jax.models import presets, transformer
from opd_jax.models.config import RopeScaling
from opd_jax.storage import huggingface_config

# Parameters as published on the model cards, in billions.
PUBLISHED = {
  'qwen3_0p6b': 0.596,
  'qwen3_1p7b': 1.721,
  'qwen3_4b': 4.022,
  'qwen3_8b': 8.191,
  'qwen3_14b': 14.768,
  'qwen3_32b': 32.762,
  'qwen3_30b_a3b': 30.532,
  'qwen3p5_0p8b': 0.752,
  'qwen3p5_4b': 4.206,
  'qwen3p5_9b': 8.954,
  'qwen3p5_27b': 26.896,
  'qwen2p5_0p5b': 0.494,
  'qwen2p5_1p5b': 1.544,
  'qwen2p5_3b': 3.086,
  'qwen2p5_7b': 7.616,
  'qwen2p5_14b': 14.770,
  'llama3p2_1b': 1.236,
  'llama3p2_3b': 3.213,
  'llama3p1_8b': 8.030,
}


@pytest.mark.parametrize('name', PUBLISHED)
def test_presets_have_the_published_number_of_parameters(name, single):
  assert transformer.count(presets.every()[name](), single) / 1e9 == pytest.approx(
    PUBLISHED[name], abs=6e-4
  )


def test_every_preset_is_in_the_table():
  assert set(presets.every()) == {*PUBLISHED, 'tiny'}


@pytest.mark.parametrize('name', presets.every())
def test_a_preset_survives_its_config_json(name):
  config = presets.every()[name]()
  assert huggingface_config.parse(huggingface_config.write(config, dtype='float32')) == config


def test_a_misspelt_override_is_named():
  with pytest.raises(ValueError, match='remet'):
    presets.tiny(remet='full')


@pytest.mark.parametrize(
  'overrides, words',
  [
    ({'num_heads': 3}, '3 query heads'),
    ({'head_dim': 15}, 'head_dim=15'),
  ],
)
def test_impossible_models_are_refused(overrides, words):
  with pytest.raises(ValueError, match=words):
    presets.tiny(**overrides)


def test_an_unknown_name_of_a_type_or_policy_is_refused():
  """Under the shape hook the annotation refuses first; without it the record does (see cli_test)."""
  with pytest.raises(Exception, match='float8'):
    presets.tiny(dtype='float8')


RAW = huggingface_config.write(presets.tiny(), dtype='float32')


@pytest.mark.parametrize(
  'change, words',
  [
    ({'model_type': 'mamba'}, "unknown architecture: model_type='mamba'"),
    ({'architectures': ['Qwen3ForSequenceClassification']}, 'Qwen3ForSequenceClassification'),
    ({'use_sliding_window': True}, 'use_sliding_window=True'),
    ({'attention_bias': True}, 'attention_bias=True'),
    ({'hidden_act': 'gelu'}, "hidden_act='gelu'"),
    ({'quantization_config': {'bits': 4}}, 'quantization_config='),
    ({'logit_scale': 0.5}, r'logit_scale=0.5 \(unknown field\)'),
    ({'rope_scaling': 'linear'}, "rope_scaling='linear'"),
    ({'hidden_size': '64', 'head_dim': None}, "hidden_size='64'"),
    ({'vocab_size': 320.0}, 'vocab_size=320.0; a whole number'),
    ({'num_attention_heads': 0}, 'num_attention_heads=0'),
    ({'num_hidden_layers': None}, 'lacks num_hidden_layers'),
    ({'rms_norm_eps': 'small'}, "rms_norm_eps='small'; a number above 0"),
    ({'rope_scaling': {'rope_type': 'yarn', 'factor': 4.0}}, 'yarn'),
    ({'rope_scaling': {'rope_type': 'llama3', 'factor': 4.0}}, 'llama3'),
    (
      {'model_type': 'qwen3_moe', 'architectures': None},
      'lacks moe_intermediate_size, num_experts',
    ),
  ],
)
def test_a_config_field_that_is_not_implemented_is_named_with_its_value(change, words):
  with pytest.raises(ValueError, match=words):
    huggingface_config.parse({**RAW, **change})


def test_a_config_that_is_no_object_is_refused():
  with pytest.raises(ValueError, match='list instead of an object'):
    huggingface_config.parse([])


def test_fields_that_change_nothing_are_let_through():
  harmless = {
    '_attn_implementation_autoset': True,
    'partial_rotary_factor': 1.0,
    'rms_norm_eps': None,
  }
  assert huggingface_config.parse(
    {**RAW, **harmless, 'hidden_act': 'swish'}
  ) == huggingface_config.parse(RAW)


def test_a_config_without_its_essentials_is_refused():
  with pytest.raises(ValueError, match='lacks hidden_size'):
    huggingface_config.parse({key: value for key, value in RAW.items() if key != 'hidden_size'})


def test_both_spellings_of_rope_are_read():
  scaling = RopeScaling(
    factor=8.0, low_frequency_factor=1.0, high_frequency_factor=4.0, original_max_positions=8192
  )
  config = dataclasses.replace(presets.llama3p1_8b(), rope_scaling=scaling)
  old = huggingface_config.write(config, dtype='float32')
  new = {key: value for key, value in old.items() if key not in ('rope_theta', 'rope_scaling')}
  new['rope_parameters'] = {'rope_theta': old['rope_theta'], **old['rope_scaling']}
  assert huggingface_config.parse(old) == huggingface_config.parse(new) == config
