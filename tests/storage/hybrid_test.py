"""Qwen3.5's folders: the text model inside one that sees, what is refused, and tensors that stay float32."""

import importlib.util
import json

import jax
import numpy as np
import parity_cases
import pytest
from conftest import FAMILIES

from opd_jax.models import transformer
from opd_jax.storage import huggingface, huggingface_config, hybrid_config, layerwise, safetensors

hybrid = FAMILIES['qwen3_5']
TOKENS = np.random.RandomState(0).randint(0, 320, (2, 20)).astype(np.int32)


def states(config, layout, params):
  run = jax.jit(lambda params, tokens: transformer.bind(config, layout, params)(tokens))
  return run(params, TOKENS)


def saved(folder, single, **settings):
  config = hybrid(**settings)
  params = transformer.init(config, single, jax.random.key(0))
  huggingface.save(folder, config, single, params)
  return config, params


def test_a_text_model_inside_one_that_sees_is_read_by_itself(single, tmp_path):
  """Names and settings as published, beside a tower, and a head that drafts several tokens."""
  config, params = saved(tmp_path / 'alone', single)
  tensors = safetensors.index(tmp_path / 'alone' / 'model.safetensors')
  whole = {
    name.replace('model.', 'model.language_model.', 1): tensor.read()
    for name, tensor in tensors.items()
  }
  whole['model.visual.merger.norm.weight'] = whole['mtp.fc.weight'] = np.ones(3, np.float32)
  (tmp_path / 'whole').mkdir()
  header = safetensors.header_of((name, 'F32', x.shape) for name, x in whole.items())
  safetensors.write(tmp_path / 'whole' / 'model.safetensors', header, iter(whole.values()))
  inner = json.loads((tmp_path / 'alone' / 'config.json').read_text())
  outer = {
    'architectures': ['Qwen3_5ForConditionalGeneration'],
    'model_type': 'qwen3_5',
    'image_token_id': 1,
    'tie_word_embeddings': inner.pop('tie_word_embeddings'),
    'vision_config': {'depth': 1},
    'text_config': inner | {'mtp_num_hidden_layers': 1, 'mamba_ssm_dtype': 'float32'},
  }
  (tmp_path / 'whole' / 'config.json').write_text(json.dumps(outer))
  again, back = huggingface.load(tmp_path / 'whole', single)
  assert again == config
  jax.tree.map(np.testing.assert_array_equal, back, params)


def test_numbers_of_the_decay_stay_float32_in_files_and_in_memory(single, tmp_path):
  config, params = saved(tmp_path / 'm', single, param_dtype='bfloat16', dtype='bfloat16')
  tensors = safetensors.index(tmp_path / 'm' / 'model.safetensors')
  wide = {name.rsplit('linear_attn.')[-1] for name, x in tensors.items() if x.dtype == 'F32'}
  assert wide == {'A_log', 'dt_bias', 'norm.weight'}
  again, back = huggingface.load(tmp_path / 'm', single)
  assert again == config  # the others say what the type is
  jax.tree.map(np.testing.assert_array_equal, back, params)


@pytest.mark.parametrize(
  'change, words',
  [
    ({'layer_types': ['full_attention', *['linear_attention'] * 3]}, 'orders 4 layers as'),
    ({'layer_types': ['linear_attention'] * 4}, 'orders 4 layers as'),
    ({'attn_output_gate': False}, 'attn_output_gate=False'),
    ({'linear_num_key_heads': 0}, 'linear_num_key_heads=0'),
    ({'layer_types': ['full_attention'] * 4}, 'orders 4 layers as'),
    ({'layer_types': 5}, 'layer_types=5; a list'),
    ({'rope_parameters': {'partial_rotary_factor': 'x'}}, "partial_rotary_factor='x'; a number"),
    ({'output_gate_type': 'relu'}, "output_gate_type='relu'"),
    ({'linear_num_key_heads': 3}, 'value_heads a multiple of key_heads'),
    ({'linear_gate': 'new'}, "linear_gate='new' .unknown field"),
  ],
  ids=lambda value: next(iter(value)) if isinstance(value, dict) else None,
)
def test_what_is_not_implemented_is_refused_by_name(change, words):
  raw = huggingface_config.write(hybrid(), dtype='float32') | change
  with pytest.raises(ValueError, match=words):
    huggingface_config.parse(raw)


@pytest.mark.parametrize(
  'change, words',
  [
    ({'text_config': None}, 'has no text_config'),
    ({'architectures': ['Qwen3_5ForSequenceClassification']}, 'ForConditionalGeneration is read'),
    ({'quantization_config': {'quant_method': 'fp8'}}, 'quantization_config='),
  ],
  ids=lambda value: next(iter(value)) if isinstance(value, dict) else None,
)
def test_a_whole_that_is_not_implemented_is_refused(change, words):
  inner = huggingface_config.write(hybrid(), dtype='float32')
  whole = {'model_type': 'qwen3_5', 'text_config': inner, 'tie_word_embeddings': None}
  assert huggingface_config.parse(whole | {'eos_token_id': 7}).end_tokens == (7,)
  assert huggingface_config.parse(whole).tied
  with pytest.raises(ValueError, match=words):
    huggingface_config.parse(whole | change)


@pytest.mark.parametrize('types', [{}, {'int8': True}], ids=['as it is', 'int8'])
def test_a_period_at_a_time_gives_the_same_states(single, tmp_path, types):
  saved(tmp_path / 'm', single)
  config, params = huggingface.load(tmp_path / 'm', single, **types)
  start = np.zeros(2, np.int32)
  got = layerwise.hidden_of(str(tmp_path / 'm'), single, TOKENS, start, **types)
  np.testing.assert_allclose(got, states(config, single, params), atol=1e-5)


@pytest.mark.skipif(importlib.util.find_spec('torch') is None, reason='torch is not installed')
def test_greedy_text_is_that_of_transformers(single, tmp_path):
  """Its cache of states against ours, from an exported folder."""
  import torch
  import transformers

  from opd_jax.data.prompts import left_padded
  from opd_jax.inference import sampler
  from opd_jax.inference.decoding import Decoding, Greedy

  case = next(case for case in parity_cases.CASES if case.family == hybrid_config.FAMILY)
  config = huggingface_config.parse(parity_cases.read_golden(case)[0])
  params = jax.device_put(parity_cases.our_params(config, single))
  huggingface.save(tmp_path / 'm', config, single, params)
  theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / 'm').eval()
  prompts = [[5, 9, 2], [7], list(range(1, 12))]
  sampling = sampler.Sampling(budget=20, slots=2, chunk=4, decoding=Decoding(rules=(Greedy(),)))
  rollout = sampler.generate(
    sampler.Model(config, single, params),
    left_padded(prompts, width=11, pad=0),
    jax.random.key(0),
    sampling=sampling,
  )
  for row, prompt in enumerate(prompts):
    with torch.no_grad():
      want = theirs.generate(
        torch.tensor([prompt]), max_new_tokens=20, do_sample=False,
        eos_token_id=None, pad_token_id=0,
      )  # fmt: skip
    assert rollout.response[row].tolist() == want[0, len(prompt) :].tolist()
