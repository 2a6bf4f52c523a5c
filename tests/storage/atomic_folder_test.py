"""A model's tokenizer travels with it, and cuts text as it did."""

import json

import transformers
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from opd_jax.data.tokenizers import HubTokenizer
from opd_jax.storage.atomic_folder import copy_companions

TEXT = 'add 12 to 345: 357'


def test_a_folder_without_config_json_has_the_tokenizer_that_the_model_was_trained_with(tmp_path):
  """With a config.json transformers chooses the class by the model; this one cuts digits apart, the other does not."""
  source, copied = tmp_path / 'source', tmp_path / 'copied'
  made = Tokenizer(models.BPE())
  made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
  made.decoder = decoders.ByteLevel()
  alphabet = pre_tokenizers.ByteLevel.alphabet()
  trainer = trainers.BpeTrainer(
    vocab_size=300, special_tokens=['<|end|>'], initial_alphabet=alphabet, show_progress=False
  )
  made.train_from_iterator([TEXT] * 9, trainer)
  fast = transformers.PreTrainedTokenizerFast(tokenizer_object=made, eos_token='<|end|>')
  fast.save_pretrained(str(source))
  settings = source / 'tokenizer_config.json'
  known = json.loads(settings.read_text()) | {'tokenizer_class': 'PreTrainedTokenizerFast'}
  settings.write_text(json.dumps(known))
  alone = HubTokenizer(source).encode(TEXT)
  (source / 'config.json').write_text(json.dumps({'model_type': 'qwen2'}))
  trained_with = HubTokenizer(source).encode(TEXT)
  assert list(trained_with) != list(alone)
  copied.mkdir()
  copy_companions(source, copied)
  assert not (copied / 'config.json').exists()
  assert list(HubTokenizer(copied).encode(TEXT)) == list(trained_with)
