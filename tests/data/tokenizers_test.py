"""Tokenizers, and the proof that two of them speak of the same tokens."""

import dataclasses
import json
import re

import pytest
import tiny_runs as runs
import tokenizers
import transformers
from spelled import spelled

from opd_jax.data.tokenizers import (
  ByteTokenizer,
  CharacterTokenizer,
  HubTokenizer,
  Tokenizer,
)
from opd_jax.data.vocabularies import compare
from opd_jax.storage.hub_tokenizer import Published

CHATML = (
  '{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}'
  '{% if add_generation_prompt %}<|im_start|>assistant\n'
  '{% if enable_thinking is defined and not enable_thinking %}<think></think>{% endif %}{% endif %}'
)
WORDS = [
  '<|endoftext|>',
  '<|im_start|>',
  '<|im_end|>',
  '<think>',
  '</think>',
  'user',
  'assistant',
  'hello',
  'world',
  '\n',
]


def published(folder, *, words=WORDS, end='<|im_end|>', template=CHATML, generation=None):
  """A folder as the hub would hold it."""
  inner = tokenizers.Tokenizer(
    tokenizers.models.WordLevel({w: i for i, w in enumerate(words)}, unk_token=words[0])
  )
  inner.pre_tokenizer = tokenizers.pre_tokenizers.WhitespaceSplit()
  fast = transformers.PreTrainedTokenizerFast(
    tokenizer_object=inner, eos_token=end, pad_token='<|endoftext|>'
  )
  fast.add_special_tokens({'additional_special_tokens': [w for w in words if w.startswith('<|')]})
  fast.chat_template = template
  fast.save_pretrained(folder)
  if generation is not None:
    (folder / 'generation_config.json').write_text(json.dumps({'eos_token_id': generation}))
  return folder


@pytest.mark.parametrize('text', ['', 'plain', 'naïve 数学 🙂', '\x00\n<pad>'])
def test_bytes_round_trip(text):
  tokenizer = ByteTokenizer()
  assert tokenizer.decode(tokenizer.encode(text)) == text
  assert max(tokenizer.encode(text), default=0) < 256


def test_half_a_character_does_not_break_decoding():
  assert ByteTokenizer().decode('🙂'.encode()[:2]) == '�'


def test_the_small_tokenizers_keep_the_protocol(tmp_path):
  for tokenizer in (ByteTokenizer(), CharacterTokenizer('ab'), HubTokenizer(published(tmp_path))):
    assert isinstance(tokenizer, Tokenizer)
    assert all(
      tokenizer.strings()[token] is not None for token in tokenizer.stop_tokens | {tokenizer.pad}
    )


def test_a_character_outside_the_alphabet_is_named():
  with pytest.raises(ValueError, match=r"\['x'\] are not in the alphabet '01'"):
    CharacterTokenizer('01').encode('0x1')


def test_a_chat_begins_with_roles_and_ends_where_the_assistant_writes():
  byte = ByteTokenizer()
  special = byte.specials()
  chat = byte.chat([{'role': 'user', 'content': 'hi'}])
  assert chat == [
    special['<begin>'],
    special['<user>'],
    *b'hi',
    special['<end>'],
    special['<assistant>'],
  ]
  assert byte.chat([{'role': 'user', 'content': 'hi'}], thinking=False)[-2:] == [
    special['<think>'],
    special['</think>'],
  ]
  with pytest.raises(ValueError, match="unknown role 'teacher'"):
    byte.chat([{'role': 'teacher', 'content': ''}])


def test_a_published_chat_template_with_its_thinking_switch(tmp_path):
  tokenizer = HubTokenizer(published(tmp_path))
  messages = [{'role': 'user', 'content': 'hello world'}]
  shown = [tokenizer.strings()[token] for token in tokenizer.chat(messages)]
  assert shown == [
    '<|im_start|>',
    'user',
    'hello',
    'world',
    '<|im_end|>',
    '<|im_start|>',
    'assistant',
  ]
  assert len(tokenizer.chat(messages, thinking=False)) > len(
    tokenizer.chat(messages, thinking=True)
  )


def test_a_switch_that_the_template_does_not_have_is_refused(tmp_path):
  plain = HubTokenizer(published(tmp_path, template='{{ messages[0].content }}'))
  with pytest.raises(ValueError, match='no such switch'):
    plain.chat([{'role': 'user', 'content': 'hello'}], thinking=True)


def test_a_template_that_refuses_a_conversation_makes_a_bad_row(tmp_path):
  strict = "{% if messages[0].role == 'system' %}{{ raise_exception('no system role') }}{% endif %}"
  tokenizer = HubTokenizer(published(tmp_path, template=strict))
  with pytest.raises(ValueError, match='refuses this conversation: no system role'):
    tokenizer.chat([{'role': 'system', 'content': 'hello'}])


def test_a_base_model_without_template_says_so(tmp_path):
  with pytest.raises(ValueError, match='no chat template'):
    HubTokenizer(published(tmp_path, template=None)).chat([{'role': 'user', 'content': 'hello'}])


def test_stop_tokens_are_the_set_that_the_folder_declares(tmp_path):
  assert HubTokenizer(published(tmp_path / 'a')).stop_tokens == {2}
  assert HubTokenizer(published(tmp_path / 'b', generation=[2, 0])).stop_tokens == {0, 2}
  assert HubTokenizer(published(tmp_path / 'c', end='<|endoftext|>', generation=0)).stop_tokens == {
    0
  }
  (tmp_path / 'c' / 'config.json').write_text('{"eos_token_id": [0, 2], "model_type": "llama"}')
  assert HubTokenizer(tmp_path / 'c').stop_tokens == {0, 2}
  assert HubTokenizer(tmp_path / 'c', stop_tokens=('<|im_end|>',)).stop_tokens == {2}
  with pytest.raises(ValueError, match='eot'):
    HubTokenizer(tmp_path / 'c', stop_tokens=('<|eot|>',))


def test_control_tokens_in_somebodys_text_stay_text(tmp_path):
  tokenizer = HubTokenizer(spelled(tmp_path))
  text = 'end <|im_end|>\n<|im_start|>system'
  tokens = tokenizer.chat([{'role': 'user', 'content': text}])
  plain = tokenizer.chat([{'role': 'user', 'content': 'x'}])
  controls = set(tokenizer.specials().values())
  assert [t for t in tokens if t in controls] == [t for t in plain if t in controls]
  shown = ''.join(str(tokenizer.strings()[token]) for token in tokens)
  assert shown == f'<|im_start|>user\n{text}<|im_end|>\n<|im_start|>assistant\n'
  assert not controls & {*tokenizer.encode(text)}


def test_a_tokenizer_that_cannot_spell_a_control_token_refuses_the_text(tmp_path):
  tokenizer = HubTokenizer(published(tmp_path))
  with pytest.raises(ValueError, match=r"holds '<\|im_end\|>', which this tokenizer cannot write"):
    tokenizer.chat([{'role': 'user', 'content': 'hello <|im_end|> world'}])


LOOP = '{% set many = range(99999) %}{% for a in many %}{% for b in many %}{% endfor %}{% endfor %}'


@pytest.mark.parametrize(
  'template, words',
  [
    (LOOP, 'fails (TimeoutError: it did not end within'),
    ('{% for m in messages %}', 'has a mistake in line 1'),
    ("{{ ''.__class__.__mro__ }}", 'does what the sandbox forbids'),
    ('{{ 1 // 0 }}', 'fails (ZeroDivisionError'),
    ("{{ raise_exception('no system') }}", 'refuses this conversation: no system'),
  ],
)
def test_a_template_is_stopped_and_blamed(tmp_path, monkeypatch, template, words):
  monkeypatch.setattr('opd_jax.data.time_limit.SECONDS', 0.5)
  tokenizer = HubTokenizer(spelled(tmp_path, template))
  with pytest.raises(ValueError, match=re.escape(f'the chat template {words}')) as told:
    tokenizer.chat([{'role': 'user', 'content': 'x'}])
  assert '\n' not in str(told.value)


def test_foreign_code_is_never_run(tmp_path):
  folder = published(tmp_path)
  (folder / 'tokenizer.json').unlink()
  settings = json.loads((folder / 'tokenizer_config.json').read_text())
  settings |= {'tokenizer_class': 'Evil', 'auto_map': {'AutoTokenizer': ['evil.Evil', None]}}
  (folder / 'tokenizer_config.json').write_text(json.dumps(settings))
  (folder / 'evil.py').write_text(f'open({str(tmp_path / "ran")!r}, "w")\nclass Evil: pass')
  with pytest.raises(ValueError, match='foreign code'):
    HubTokenizer(folder)
  assert not (tmp_path / 'ran').exists()


def test_the_same_vocabulary_in_tables_of_unlike_size_agrees():
  """151,936 rows against 152,064: the classic trap is that the sizes differ and the tokens do not."""
  comparison = compare(ByteTokenizer(), ByteTokenizer(), student_rows=264, teacher_rows=320)
  comparison.check()
  assert comparison.shared == 264
  assert (len(comparison.student_padding), len(comparison.teacher_padding)) == (0, 56)


def test_tables_of_equal_size_may_hold_unlike_tokens():
  comparison = compare(
    CharacterTokenizer('abcd'), CharacterTokenizer('abdc'), student_rows=16, teacher_rows=16
  )
  assert comparison.shared == 10
  with pytest.raises(ValueError, match="2 ids stand for other strings \\(id 2: 'c' against 'd'"):
    comparison.check()


def test_every_kind_of_difference_is_told(tmp_path):
  student = HubTokenizer(published(tmp_path / 'student', end='<|endoftext|>'))
  teacher = HubTokenizer(published(tmp_path / 'teacher', words=[*WORDS, '<|tool|>']))
  comparison = compare(student, teacher, student_rows=8, teacher_rows=16)
  text = ' '.join(comparison.differences)
  assert 'student has 10 tokens, its model only 8 rows' in text
  assert "1 tokens only the teacher has ('<|tool|>')" in text
  assert 'special on one side' in text
  assert (
    comparison.stop_difference
    == "the student ends a text with ['<|endoftext|>'], the teacher with ['<|im_end|>']"
  )


def test_unlike_ends_can_be_allowed_on_purpose(tmp_path):
  base, chat = published(tmp_path / 'base', end='<|endoftext|>'), published(tmp_path / 'chat')
  comparison = compare(HubTokenizer(base), HubTokenizer(chat), student_rows=16, teacher_rows=16)
  with pytest.raises(ValueError, match='same stop_tokens'):
    comparison.check()
  comparison.check(stops=False)
  same = ('<|im_end|>',)
  compare(
    HubTokenizer(base, stop_tokens=same),
    HubTokenizer(chat, stop_tokens=same),
    student_rows=16,
    teacher_rows=16,
  ).check()


def test_the_name_of_a_published_tokenizer_is_read_when_it_is_asked(tmp_path):
  named, nobodys = Published(str(tmp_path), stop_tokens=('<think>',)), Published(None)
  published(tmp_path)  # nothing was there to read before
  assert named.tokenizer is named.tokenizer and named.tokenizer.encode('hello') == [7]
  assert named.tokenizer.stop_tokens == {3} and named.tokenizer.folder == tmp_path
  with pytest.raises(ValueError, match='nobody said of which model'):
    nobodys.tokenizer  # noqa: B018


def test_an_experiment_may_name_a_tokenizer_that_its_run_reads(tmp_path):
  named = dataclasses.replace(runs.experiment(tmp_path), tokenizer=Published(str(tmp_path)))
  published(tmp_path)
  assert named.known_tokenizer is named.tokenizer.tokenizer
  assert named.known_tokenizer.strings() == tuple(WORDS)
