"""Two tokenisations of one text: chunks are minimal, nothing of the text is lost, and what differs is left out."""

import numpy as np
import pytest
import tokenizers
import transformers

from opd_jax.data import alignment
from opd_jax.data.alignment import Pair, aligned
from opd_jax.data.pieces import PieceTokenizer
from opd_jax.data.tiny_worlds import sums
from opd_jax.data.tokenizers import ByteTokenizer, CharacterTokenizer, HubTokenizer

ENDS = ['<|end|>', '<think>']


def byte_level(folder, *, merges, normalizer=None):
  """A byte-level BPE with some merges, as a hub folder holds it."""
  letters = sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet())
  words = letters + [''.join(pair) for pair in merges]
  model = tokenizers.models.BPE({word: at for at, word in enumerate(words)}, [*merges])
  inner = tokenizers.Tokenizer(model)
  inner.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
  inner.decoder = tokenizers.decoders.ByteLevel()
  if normalizer is not None:
    inner.normalizer = normalizer
  return _saved(inner, folder)


def sentence_piece(folder, *, words, merges):
  """A BPE with byte fallback and a space in front of every text, as Llama 2 has it."""
  fallback = [f'<0x{byte:02X}>' for byte in range(256)]
  vocabulary = {word: at for at, word in enumerate(['<unk>', *fallback, *words])}
  inner = tokenizers.Tokenizer(
    tokenizers.models.BPE(vocabulary, merges, unk_token='<unk>', byte_fallback=True, fuse_unk=True)
  )
  inner.normalizer = tokenizers.normalizers.Sequence(
    [tokenizers.normalizers.Prepend('▁'), tokenizers.normalizers.Replace(' ', '▁')]
  )
  inner.decoder = tokenizers.decoders.Sequence(
    [
      tokenizers.decoders.Replace('▁', ' '),
      tokenizers.decoders.ByteFallback(),
      tokenizers.decoders.Fuse(),
      tokenizers.decoders.Strip(' ', 1, 0),
    ]
  )
  return _saved(inner, folder)


def _saved(inner, folder):
  fast = transformers.PreTrainedTokenizerFast(tokenizer_object=inner, eos_token=ENDS[0])
  fast.add_special_tokens({'additional_special_tokens': ENDS})
  fast.save_pretrained(folder)
  return HubTokenizer(folder)


def pair(student, teacher, **options):
  return Pair(student, teacher, teacher.turn_end, **options)


def walked(own, theirs):
  """The alignment of arXiv:2606.09456: two pointers and two buffers of text."""
  chunks, i, j = [], 0, 0
  while i < len(own) or j < len(theirs):
    left, right = [own[i]], [theirs[j]]
    i, j = i + 1, j + 1
    while b''.join(left) != b''.join(right):
      if len(b''.join(left)) < len(b''.join(right)):
        left, i = [*left, own[i]], i + 1
      else:
        right, j = [*right, theirs[j]], j + 1
    chunks.append((len(left), len(right)))
  return chunks


@pytest.mark.parametrize('seed', range(20))
def test_chunks_are_those_of_two_pointers_that_walk_over_the_text(seed):
  """Both models have pieces of their own, up to four characters long."""
  rng = np.random.RandomState(seed)
  draw = lambda: {''.join(rng.choice([*'abc'], rng.randint(2, 5))) for _ in range(6)}
  student, teacher = (PieceTokenizer('abc', pieces=sorted(draw())) for _ in range(2))
  text = ''.join(rng.choice([*'abc'], 40))
  row = student.encode(text)
  found = pair(student, teacher).align(row)
  assert teacher.decode(found.tokens.tolist()) == text
  pieces = lambda tokenizer, tokens: [tokenizer.token_bytes()[token] for token in tokens]
  want = walked(pieces(student, row), pieces(teacher, found.tokens))
  got = zip(np.bincount(found.chunk), np.bincount(found.others), strict=True)
  assert [tuple(map(int, each)) for each in got] == want
  assert (np.diff(found.chunk) >= 0).all() and (np.diff(found.others) >= 0).all()


def test_with_one_tokenizer_every_token_is_a_chunk():
  tokenizer = sums.numbers()
  row = [*tokenizer.encode('7+5=12;12+9=21:21'), tokenizer.turn_end]
  found = pair(tokenizer, sums.numbers()).align(row)
  assert found.tokens.tolist() == row
  for numbers in (found.chunk, found.others, found.place, found.owner, found.last):
    assert numbers.tolist() == [*range(len(row))]
  assert not found.offset.any() and not found.spans.any()


def test_tokens_that_cross_are_one_chunk_and_know_where_they_begin():
  student, teacher = sums.signs(), sums.numbers()
  found = pair(student, teacher).align([*student.encode('7+5=12;12'), student.turn_end])
  assert found.chunk.tolist() == [0, 1, 2, 2, 3, 3, 4]  # 7 +5 =1 2 ;1 2 end
  assert found.others.tolist() == [0, 1, 1, 2, 3, 3, 4]  # 7 + 5 =12 ; 12 end
  assert found.place.tolist() == [0, 1, 3, 3, 4, 5, 6]
  assert found.offset.tolist() == [0, 0, 0, 2, 0, 1, 0]
  assert found.spans.tolist() == [False, True, False, False, True, False, False]
  assert found.owner.tolist() == [0, 1, 1, 3, 4, 5, 6]


def test_a_long_stretch_is_left_out_and_the_next_one_is_not():
  student, teacher = CharacterTokenizer('ab'), PieceTokenizer('ab', pieces=['aaa'])
  found = pair(student, teacher, longest=2).align(student.encode('aaab'))
  assert found.chunk.tolist() == [-1, -1, -1, 1]


def test_an_empty_response_and_one_that_only_ends():
  student, teacher = sums.signs(), sums.numbers()
  found = pair(student, teacher).align([])
  assert len(found.chunk) == len(found.tokens) == 0
  found = pair(student, teacher).align([student.turn_end])
  assert found.tokens.tolist() == [teacher.turn_end] and found.chunk.tolist() == [0]


def test_a_response_without_its_end_has_no_end_for_the_teacher():
  student, teacher = sums.signs(), sums.numbers()
  found = pair(student, teacher).align(student.encode('1+1=2'))
  assert teacher.turn_end not in found.tokens


def test_control_tokens_of_one_name_are_chunks_and_others_are_not_judged(tmp_path):
  student = CharacterTokenizer('ab')
  number = student.specials()
  teacher = PieceTokenizer('ab', pieces=['ab', 'ba'])
  both = pair(student, teacher)
  row = [*student.encode('ab'), number['</think>'], *student.encode('ba'), student.turn_end]
  found = both.align(row)
  assert found.chunk.tolist() == [0, 0, 1, 2, 2, 3]
  assert teacher.specials()['</think>'] in found.tokens
  other = byte_level(tmp_path, merges=[('a', 'b')])  # has no </think> of its own
  found = pair(student, other).align(
    [*student.encode('a'), number['</think>'], *student.encode('b')]
  )
  assert found.chunk.tolist() == [0, -1, 0]  # the teacher reads ab
  assert [other.strings()[token] for token in found.tokens] == ['ab']


def test_a_character_cut_in_the_middle_is_left_out_and_what_is_before_it_is_not(tmp_path):
  student, teacher = ByteTokenizer(), byte_level(tmp_path, merges=[('a', 'b')])
  row = [*b'ab', 0xF0, 0x9F]  # half of an emoji: the budget ended there
  found = pair(student, teacher).align(row)
  assert found.chunk.tolist() == [0, 0, -1, -1]
  found = pair(student, teacher).align([0xFF, *b'ab'])  # no text from the first byte on
  assert found.chunk.tolist() == [-1, -1, -1] and len(found.tokens) == 0


def test_a_character_of_several_tokens_is_one_chunk(tmp_path):
  student, teacher = ByteTokenizer(), byte_level(tmp_path, merges=[('Ã', '©')])  # é is one token
  found = pair(student, teacher).align([*'aéb'.encode()])
  assert found.chunk.tolist() == [0, 1, 1, 2]


def test_bytes_that_no_token_writes_are_aligned_byte_by_byte(tmp_path):
  """Byte fallback, and the space in front of a text, which belongs to the first chunk."""
  teacher = sentence_piece(
    tmp_path, words=['▁', 'a', 'b', 'ab', '▁ab'], merges=[('a', 'b'), ('▁', 'ab')]
  )
  student = ByteTokenizer()
  found = pair(student, teacher).align([*'ab é'.encode()])
  assert [teacher.strings()[t] for t in found.tokens] == ['▁ab', '▁', '<0xC3>', '<0xA9>']
  assert found.chunk.tolist() == [0, 0, 1, 2, 3]
  itself = pair(teacher, teacher).align(teacher.encode('ab ab'))
  assert itself.chunk.tolist() == [0, 1]


def test_text_that_the_teacher_writes_otherwise_ends_what_it_judges(tmp_path):
  """NFC makes one character of two: what is before it is exact, what follows is not judged."""
  student = ByteTokenizer()
  teacher = byte_level(tmp_path, merges=[], normalizer=tokenizers.normalizers.NFC())
  found = pair(student, teacher).align([*'abe\u0301b'.encode()])
  assert found.chunk.tolist() == [0, 1, -1, -1, -1, -1]
  lower = byte_level(tmp_path / 'lower', merges=[], normalizer=tokenizers.normalizers.Lowercase())
  assert (pair(student, lower).align([*b'ABC']).chunk == -1).all()


def test_text_that_the_teacher_cannot_write_is_not_judged():
  found = pair(CharacterTokenizer('ab'), CharacterTokenizer('a')).align([0, 1])
  assert found.chunk.tolist() == [-1, -1]


def test_a_tokenizer_whose_tokens_have_no_bytes_is_refused(tmp_path):
  inner = tokenizers.Tokenizer(tokenizers.models.WordLevel({'<|end|>': 0, 'a': 1}, '<|end|>'))
  with pytest.raises(ValueError, match='decodes by nothing that is said'):
    _saved(inner, tmp_path).token_bytes()


@pytest.mark.parametrize('text', ['', 'plain', 'naïve 数学 🙂', '\x00\n<pad>', 'a  b '])
def test_the_bytes_of_tokens_are_the_text(tmp_path, text):
  for tokenizer in (ByteTokenizer(), byte_level(tmp_path, merges=[('a', 'b')])):
    written = tokenizer.token_bytes()
    assert b''.join(written[token] for token in tokenizer.encode(text)) == text.encode()
    assert all(written[token] is None for token in tokenizer.specials().values())


def test_numbers_of_tokens_do_not_depend_on_how_long_the_text_is():
  """A text twice as long has the same chunks twice: nothing looks back."""
  own, theirs = np.array([1, 2, 3]), np.array([3, 1, 2])
  once = aligned([0] * 3, own, theirs, agree=6)
  twice = aligned([0] * 6, np.tile(own, 2), np.tile(theirs, 2), agree=12)
  count = once.chunk.max() + 1
  np.testing.assert_array_equal(twice.chunk, [*once.chunk, *(once.chunk + count)])


def test_each_token_of_the_teacher_goes_to_the_longest_of_the_student_that_it_begins_with():
  """The example of arXiv:2607.22334, appendix."""
  student = PieceTokenizer('abeit', pieces=['at', 'ate', 'bit'])
  teacher = PieceTokenizer('abeit', pieces=['at', 'ate', 'bit', 'atb'])
  both, names = pair(student, teacher), student.strings()
  of = lambda text, offset=0: names[both.prefixes[offset, teacher.strings().index(text)]]
  assert [of(text) for text in ('at', 'ate', 'a', 'bit', 'atb')] == ['at', 'ate', 'a', 'bit', 'at']
  assert of('ate', 1) == 't' and of('ate', 2) == 'e' and of('<end>') == '<end>'
  assert both.same[teacher.strings().index('atb')] == alignment.NONE
