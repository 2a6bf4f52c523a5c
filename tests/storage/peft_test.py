"""Folders of adapters: written, read back, read by the published package, and refused by name."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from opd_jax.models import adapters, presets, transformer
from opd_jax.models.lora import Lora
from opd_jax.sharding import mesh_layout
from opd_jax.storage import huggingface, load, orbax_folder, peft

SINGLE, LORA = mesh_layout(), Lora(rank=4, alpha=12, targets=('q_proj', 'o_proj', 'down_proj'))


def written(folder, config, settings=LORA, *, published=False):
  """A base and an adapter as folders, and the merged parameters."""
  params = transformer.init(config, SINGLE, jax.random.key(0))
  save = (
    (lambda: huggingface.save(folder / 'base', config, SINGLE, params))
    if published
    else (lambda: orbax_folder.save(folder / 'base', config, params))
  )
  save()
  student = adapters.with_lora(config, settings)
  base, trained = adapters.begin(student, SINGLE, params, jax.random.key(1))
  wave = lambda x: x + 0.02 * jnp.sin(jnp.arange(x.size, dtype=x.dtype)).reshape(x.shape)
  trained = jax.tree.map(wave, trained)
  peft.save(folder / 'adapter', student, SINGLE, trained, base=str(folder / 'base'))
  return adapters.merged(student, SINGLE, adapters.joined(base, trained), config)


@pytest.mark.parametrize('settings', [LORA, Lora(rank=2)], ids=['some', 'all'])
def test_an_adapter_is_a_model_on_top_of_its_base(family, tmp_path, settings):
  merged = written(tmp_path, family(), settings)
  loaded = load.model(str(tmp_path / 'adapter'), SINGLE)
  assert loaded.config == family() == load.config_of(str(tmp_path / 'adapter'))
  jax.tree.map(np.testing.assert_array_equal, loaded.params, merged)
  load.check_files(str(tmp_path / 'adapter'), SINGLE)


def test_names_are_those_of_peft(tmp_path):
  written(tmp_path, presets.tiny())
  tensors = huggingface.safetensors.index(tmp_path / 'adapter' / peft.TENSORS)
  name = 'base_model.model.model.layers.1.self_attn.o_proj.lora_B.weight'
  assert tensors[name].shape == (64, 4) and len(tensors) == 2 * 2 * 3
  assert tensors[name.replace('lora_B', 'lora_A')].shape == (4, 64)


# A deprecation inside of peft, of names in transformers.
@pytest.mark.filterwarnings('ignore:`is_gradient_checkpointing`:FutureWarning')
def test_the_published_package_computes_the_same(family, tmp_path, tokens):
  package, torch = pytest.importorskip('peft'), pytest.importorskip('torch')
  transformers = pytest.importorskip('transformers')
  config = family()
  if config.experts:
    pytest.skip('transformers holds experts as one tensor, which peft adapts under other names')
  merged = written(tmp_path, config, Lora(rank=4, alpha=12), published=True)
  theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / 'base', dtype=torch.float32)
  theirs = package.PeftModel.from_pretrained(theirs, tmp_path / 'adapter').eval()
  with torch.no_grad():
    want = theirs(torch.tensor(tokens).long()).logits.numpy()
  model = transformer.bind(config, SINGLE, merged)
  got = transformer.logits_of(model(jnp.asarray(tokens)), model.head())
  np.testing.assert_allclose(got, want, atol=2e-4 * np.abs(want).max())
  theirs.save_pretrained(tmp_path / 'again')
  jax.tree.map(
    np.testing.assert_array_equal, load.model(str(tmp_path / 'again'), SINGLE).params, merged
  )


@pytest.mark.parametrize(
  'change, message',
  [
    ({'base_model_name_or_path': None}, 'names no base'),
    ({'use_dora': True}, 'use_dora=True, which is not supported'),
    ({'rank_pattern': {'q_proj': 8}}, 'rank_pattern'),
    ({'target_modules': ['q_proj', 'lm_head']}, r"target_modules \['lm_head'\]"),
    ({'target_modules': 'all-linear'}, "target_modules 'all-linear'"),
    ({'r': 8}, r'does not fit its base.*12 of the wrong shape.*expected \(8,'),
    ({'target_modules': ['q_proj']}, '8 that belong to nothing'),
    ({'target_modules': ['q_proj', 'o_proj', 'down_proj', 'up_proj']}, '4 missing'),
    ({'base_model_name_or_path': 'nowhere'}, "'nowhere' is neither a folder nor a preset"),
  ],
)
def test_what_cannot_be_loaded_is_refused_by_name(tmp_path, change, message):
  written(tmp_path, presets.tiny())
  file = tmp_path / 'adapter' / peft.SETTINGS
  file.write_text(json.dumps({**json.loads(file.read_text()), **change}))
  with pytest.raises(ValueError, match=message):
    load.model(str(tmp_path / 'adapter'), SINGLE)


def test_a_copy_may_be_of_another_type(tmp_path):
  written(tmp_path, presets.tiny())
  assert peft.copy(tmp_path / 'adapter', tmp_path / 'half', dtype='bfloat16') == 12
  tensors = huggingface.safetensors.index(tmp_path / 'half' / peft.TENSORS)
  assert {tensor.dtype for tensor in tensors.values()} == {'BF16'}
