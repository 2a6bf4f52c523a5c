"""Published folders: what goes in comes out, what does not fit is named, and memory stays flat."""

import json
import tracemalloc

import jax
import numpy as np
import pytest
import safetensors.numpy

from opd_jax.models import presets
from opd_jax.models.config import Experts
from opd_jax.sharding import mesh_layout
from opd_jax.storage import huggingface, huggingface_config, load, orbax_folder, parameter_names
from opd_jax.storage import safetensors as files


@pytest.fixture
def exported(tmp_path, single, params_of):
  """A tiny model, exported: (config, params, folder)."""
  config = presets.tiny(tied=False)
  huggingface.save(tmp_path / 'model', config, single, params_of(config))
  return config, params_of(config), tmp_path / 'model'


def equal(first, second) -> bool:
  return jax.tree.all(
    jax.tree.map(
      lambda a, b: a.dtype == b.dtype and (np.asarray(a) == np.asarray(b)).all(), first, second
    )
  )


def rewrite(folder, change):
  """Loads the folder's tensors as a dict with the published package, changes it, saves it back."""
  tensors = safetensors.numpy.load_file(folder / 'model.safetensors')
  change(tensors)
  safetensors.numpy.save_file(tensors, folder / 'model.safetensors')


@pytest.mark.parametrize('dtype', ['float32', 'bfloat16'])
def test_export_and_import_give_back_every_byte(family, dtype, tmp_path, single, params_of):
  config = family(param_dtype=dtype, dtype=dtype)
  huggingface.save(tmp_path / 'a', config, single, params_of(config), max_file_bytes=100_000)
  again, params = huggingface.load(tmp_path / 'a', single)
  assert again == config and equal(params, params_of(config))
  huggingface.save(tmp_path / 'b', again, single, params, max_file_bytes=100_000)
  shards = sorted(file.name for file in (tmp_path / 'a').iterdir())
  assert len(shards) >= 4 and 'model.safetensors.index.json' in shards
  for name in shards:
    assert (tmp_path / 'a' / name).read_bytes() == (tmp_path / 'b' / name).read_bytes()


def test_the_published_package_reads_our_files_and_we_read_its(exported):
  _, params, folder = exported
  theirs = safetensors.numpy.load_file(folder / 'model.safetensors')
  ours = {name: tensor.read() for name, tensor in files.index(folder / 'model.safetensors').items()}
  assert theirs.keys() == ours.keys() and all((theirs[name] == ours[name]).all() for name in ours)
  np.testing.assert_array_equal(theirs['model.norm.weight'], params['final_norm']['scale'])
  rewrite(folder, lambda tensors: None)
  assert equal(huggingface.load(folder, mesh_layout())[1], params)


def test_import_goes_straight_into_shards(exported):
  config, params, folder = exported
  layout = mesh_layout(fsdp=2, tensor=2)
  _, sharded = huggingface.load(folder, layout)
  assert equal(sharded, params)
  wanted = huggingface.transformer.abstract(config, layout)
  jax.tree.map(
    lambda leaf, other: leaf.sharding == other.sharding or pytest.fail(str(leaf.sharding)),
    sharded,
    wanted,
  )
  huggingface.save(folder.parent / 'again', config, layout, sharded)
  assert (folder.parent / 'again' / 'model.safetensors').read_bytes() == (
    folder / 'model.safetensors'
  ).read_bytes()


def test_experts_go_straight_into_shards(tmp_path, single, params_of):
  config = presets.tiny(
    family='qwen3_moe', experts=Experts(count=4, per_token=2, width=32, normalise=True)
  )
  huggingface.save(tmp_path / 'moe', config, single, params_of(config))
  assert equal(
    huggingface.load(tmp_path / 'moe', mesh_layout(fsdp=2, tensor=2))[1], params_of(config)
  )


def test_types_may_change_on_the_way(exported, single):
  _, params, folder = exported
  config, halved = huggingface.load(
    folder, single, param_dtype='bfloat16', dtype='float32', remat='full'
  )
  assert (config.param_dtype, config.dtype, config.remat) == ('bfloat16', 'float32', 'full')
  assert equal(halved, jax.tree.map(lambda leaf: leaf.astype('bfloat16'), params))


def test_import_holds_one_tensor_at_a_time(tmp_path, single, params_of):
  config = presets.tiny(vocab_size=4096, num_layers=12)
  huggingface.save(tmp_path / 'model', config, single, params_of(config))
  largest = max(np.prod(piece.shape) for piece in parameter_names.pieces(config, single)) * 4
  whole = sum(leaf.nbytes for leaf in jax.tree.leaves(params_of(config)))
  huggingface.load(tmp_path / 'model', single)  # compiles what it needs
  tracemalloc.start()
  huggingface.load(tmp_path / 'model', single)
  peak = tracemalloc.get_traced_memory()[1]
  tracemalloc.stop()
  assert largest <= peak <= 1.3 * largest + 200_000 < whole


def test_missing_surplus_and_misshapen_tensors_are_named_together(exported, single):
  _, _, folder = exported

  def change(tensors):
    tensors['model.norm.wait'] = tensors.pop('model.norm.weight')
    tensors['lm_head.weight'] = tensors['lm_head.weight'][:-1]

  rewrite(folder, change)
  with pytest.raises(ValueError) as error:
    huggingface.load(folder, single)
  text = str(error.value)
  assert '1 missing: model.norm.weight' in text
  assert '1 that this model does not have: model.norm.wait' in text
  assert 'lm_head.weight is (319, 64), expected (320, 64)' in text


def test_a_mix_of_types_is_refused_until_somebody_says_which(exported, single):
  rewrite(
    exported[2], lambda t: t.update({'model.norm.weight': t['model.norm.weight'].astype('float16')})
  )
  with pytest.raises(ValueError, match=r'mixes types \(F16: model.norm.weight; F32: .*--dtype'):
    huggingface.load(exported[2], single)
  assert equal(huggingface.load(exported[2], single, param_dtype='float32')[1], exported[1])


def test_a_tensor_comes_from_the_file_that_the_index_names(tmp_path, single, params_of):
  config = presets.tiny()
  huggingface.save(tmp_path / 'model', config, single, params_of(config), max_file_bytes=100_000)
  last = tmp_path / 'model' / 'model-00004-of-00004.safetensors'
  tensors = safetensors.numpy.load_file(last)
  safetensors.numpy.save_file(
    tensors | {'model.layers.0.self_attn.k_norm.weight': np.ones(16, np.float32)}, last
  )
  with pytest.raises(
    ValueError, match=r'places elsewhere or not at all: model.layers.0.self_attn.k_norm.weight'
  ):
    huggingface.load(tmp_path / 'model', single)


@pytest.mark.parametrize(
  'content', ['', '[]', '{}', '{"weight_map": []}', '{"weight_map": {"a": 3}}']
)
def test_a_damaged_index_is_named(exported, single, content):
  (exported[2] / huggingface.INDEX).write_text(content)
  with pytest.raises(ValueError, match=r'model.safetensors.index.json is damaged|lacks the shards'):
    huggingface.load(exported[2], single)


def test_the_special_tokens_of_a_checkpoint_travel_with_it(tmp_path, single, params_of):
  config = presets.tiny(begin_token=5, end_tokens=(7, 9), pad_token=0)
  orbax_folder.save(tmp_path / 'ours', config, params_of(config))
  again, params = orbax_folder.load(tmp_path / 'ours', single)
  huggingface.save(tmp_path / 'published', again, single, params)
  raw = json.loads((tmp_path / 'published' / 'config.json').read_text())
  assert (raw['bos_token_id'], raw['eos_token_id'], raw['pad_token_id']) == (5, [7, 9], 0)
  assert huggingface.load(tmp_path / 'published', single)[0] == config == again


def test_a_tensor_of_another_kind_is_named(exported, single):
  rewrite(exported[2], lambda tensors: tensors.update({'model.norm.weight': np.ones(64, np.int8)}))
  with pytest.raises(ValueError, match=r'dtype other than .*model.norm.weight is I8'):
    huggingface.load(exported[2], single)


@pytest.mark.parametrize('keep', [4, 100, -100])
def test_a_truncated_file_is_refused(exported, keep, single):
  file = exported[2] / 'model.safetensors'
  file.write_bytes(file.read_bytes()[:keep])
  with pytest.raises(ValueError, match=r'model.safetensors is truncated or damaged: .* Download'):
    huggingface.load(exported[2], single)


def test_a_damaged_header_is_refused(exported, single):
  file = exported[2] / 'model.safetensors'
  content = bytearray(file.read_bytes())
  content[9:20] = b'xxxxxxxxxxx'
  file.write_bytes(content)
  with pytest.raises(ValueError, match='header cannot be read'):
    huggingface.load(exported[2], single)


def test_a_missing_shard_is_named(tmp_path, single, params_of):
  config = presets.tiny()
  huggingface.save(tmp_path / 'model', config, single, params_of(config), max_file_bytes=100_000)
  (tmp_path / 'model' / 'model-00002-of-00004.safetensors').unlink()
  with pytest.raises(ValueError, match='lacks the shards model-00002-of-00004'):
    huggingface.load(tmp_path / 'model', single)


def test_a_pickle_is_refused_by_name(exported, single):
  (exported[2] / 'model.safetensors').rename(exported[2] / 'pytorch_model.bin')
  with pytest.raises(ValueError, match=r'pickles only \(pytorch_model.bin\)'):
    huggingface.load(exported[2], single)


def test_a_tied_model_may_carry_its_head_twice_but_not_another_head(tmp_path, single, params_of):
  config = presets.tiny(tied=True)
  huggingface.save(tmp_path / 'model', config, single, params_of(config))
  rewrite(
    tmp_path / 'model',
    lambda t: t.update({'lm_head.weight': t['model.embed_tokens.weight'].copy()}),
  )
  assert equal(huggingface.load(tmp_path / 'model', single)[1], params_of(config))
  rewrite(tmp_path / 'model', lambda t: t.update({'lm_head.weight': t['lm_head.weight'] + 1}))
  with pytest.raises(ValueError, match=r'lm_head.weight differs'):
    huggingface.load(tmp_path / 'model', single)


def test_a_source_that_is_nothing_says_what_would_be(tmp_path, single):
  with pytest.raises(ValueError, match=r'neither a folder nor a preset\. Presets: .*qwen3_8b'):
    load.model('qwen4_8b', single)
  with pytest.raises(
    ValueError, match='nobody/nothing is neither a folder here nor a model that the hub would give'
  ):
    load.model('nobody/nothing', single)
  with pytest.raises(ValueError, match=r'no config.json'):
    load.model(str(tmp_path), single)


def test_a_hub_id_is_downloaded_without_pickles(exported, single, monkeypatch):
  import huggingface_hub

  config, params, folder = exported
  asked = {}

  def snapshot_download(name, *, allow_patterns):
    asked[name] = allow_patterns
    return str(folder)

  monkeypatch.setattr(huggingface_hub, 'snapshot_download', snapshot_download)
  loaded = load.model('owner/model', single)
  assert loaded.config == config and equal(loaded.params, params)
  assert not any(pattern in asked['owner/model'] for pattern in huggingface.PICKLES)


def test_a_hub_repository_of_pickles_is_refused_by_name(tmp_path, single, monkeypatch):
  import huggingface_hub

  monkeypatch.setattr(
    huggingface_hub, 'snapshot_download', lambda name, allow_patterns: str(tmp_path)
  )
  monkeypatch.setattr(huggingface_hub, 'list_repo_files', lambda name: ['pytorch_model.bin'])
  with pytest.raises(
    ValueError, match=r'no safetensors, but pytorch_model.bin; a pickle can run code'
  ):
    load.model('owner/old', single)


def test_our_folder_round_trips_onto_another_layout(exported):
  config, params, folder = exported
  (folder / 'tokenizer.json').write_text('{}')
  orbax_folder.save(folder.parent / 'ours', config, params, companions=folder)
  layout = mesh_layout(fsdp=4, tensor=2)
  loaded = load.model(str(folder.parent / 'ours'), layout)
  assert loaded.config == config and equal(loaded.params, params)
  assert loaded.params['embed']['table'].sharding == layout.sharding('vocab', 'embed')
  assert (folder.parent / 'ours' / 'tokenizer.json').is_file()


def test_a_damaged_folder_of_ours_is_refused(exported, single):
  config, params, folder = exported
  orbax_folder.save(folder.parent / 'ours', config, params)
  record = json.loads((folder.parent / 'ours' / 'opd.json').read_text())
  (folder.parent / 'ours' / 'opd.json').write_text(json.dumps(record | {'format': 99}))
  with pytest.raises(ValueError, match='format 99'):
    orbax_folder.load(folder.parent / 'ours', single)
  (folder.parent / 'ours' / 'opd.json').write_text(json.dumps(record))
  lost = max(
    (folder.parent / 'ours' / 'params').rglob('*'),
    key=lambda file: file.is_file() and file.stat().st_size,
  )
  lost.write_bytes(lost.read_bytes()[:-1])
  with pytest.raises(
    ValueError, match=f'1 of .* files are missing or truncated, e.g. params/.*{lost.name}'
  ):
    orbax_folder.load(folder.parent / 'ours', single)


def test_a_folder_of_ours_with_another_shape_in_its_record_is_refused(exported, single):
  config, params, folder = exported
  orbax_folder.save(folder.parent / 'ours', config, params)
  mark = folder.parent / 'ours' / 'opd.json'
  record = json.loads(mark.read_text())
  record['model']['width'] = 128
  mark.write_text(json.dumps(record))
  with pytest.raises(
    ValueError,
    match=r'do not fit the model that its opd.json describes: .* is \[.*64.*\], expected \[.*128.*\]',
  ):
    orbax_folder.load(folder.parent / 'ours', single)


def test_nothing_is_left_behind_when_writing_fails(tmp_path, single, params_of, monkeypatch):
  config = presets.tiny()
  monkeypatch.setattr(huggingface_config, 'write', lambda *a, **k: 1 / 0)
  with pytest.raises(ZeroDivisionError):
    huggingface.save(tmp_path / 'model', config, single, params_of(config))
  assert list(tmp_path.iterdir()) == []


def test_an_occupied_destination_is_refused_untouched(exported, single):
  config, params, folder = exported
  before = sorted(folder.iterdir())
  with pytest.raises(ValueError, match='not an empty folder'):
    huggingface.save(folder, config, single, params)
  assert sorted(folder.iterdir()) == before
