"""Floor 1. The bytes that each token of a published tokenizer writes, read from what its decoder is made of."""

import functools
import json
import re
from collections.abc import Iterator, Mapping
from typing import Any

SPACE = '\u2581'  # how SentencePiece writes a space
BYTE = re.compile(r'<0x([0-9A-Fa-f]{2})>')  # a token of byte fallback


def of_published(inner: Any, strings: tuple[str | None, ...]) -> tuple[bytes | None, ...]:
  """The bytes of every id; None for control tokens and holes. Refuses a decoder that has no bytes of its own.

  Args:
    inner: a tokenizer of transformers.
    strings: the token string of every id.
  """
  backend = getattr(inner, 'backend_tokenizer', None)
  decoder = None if backend is None else json.loads(backend.to_str())['decoder']
  parts = [*_parts(decoder)] if decoder else []
  kinds = {part['type'] for part in parts}
  if 'ByteLevel' in kinds:
    of = _of_byte_level
  elif {'Metaspace', 'ByteFallback'} & kinds:
    of = _of_sentence_piece
  else:
    raise ValueError(
      f'tokenizer: which bytes a token writes is known of byte-level BPE and of SentencePiece; this one decodes by '
      f'{sorted(kinds) or "nothing that is said"}. Take a model of another family.'
    )
  added = inner.added_tokens_decoder

  def one(number: int, string: str | None) -> bytes | None:
    if number in added:
      token = added[number]
      return None if token.special else str(token).encode()
    return None if string is None else of(string)

  return tuple(one(*pair) for pair in enumerate(strings))


def is_fallback(string: str | None) -> bool:
  """Whether a token stands for one byte because no other token writes it."""
  return string is not None and BYTE.fullmatch(string) is not None


def _parts(decoder: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
  if decoder['type'] == 'Sequence':
    for part in decoder['decoders']:
      yield from _parts(part)
  else:
    yield decoder


def _of_byte_level(string: str) -> bytes:
  table = _byte_of_letter()
  return b''.join(
    bytes([table[letter]]) if letter in table else letter.encode() for letter in string
  )


def _of_sentence_piece(string: str) -> bytes:
  match = BYTE.fullmatch(string)
  return bytes([int(match[1], 16)]) if match else string.replace(SPACE, ' ').encode()


@functools.cache
def _byte_of_letter() -> dict[str, int]:
  """Byte-level BPE spells printable bytes as themselves, and the others as letters from 256 on, in order."""
  printable = {*range(33, 127), *range(161, 173), *range(174, 256)}
  others = [byte for byte in range(256) if byte not in printable]
  return {chr(byte): byte for byte in printable} | {
    chr(256 + place): byte for place, byte in enumerate(others)
  }
