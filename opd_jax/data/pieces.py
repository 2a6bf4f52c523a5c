"""Floor 1. A tokenizer with pieces of several characters: for tiny worlds whose models cut one text differently."""

import re
from collections.abc import Iterable, Sequence

from opd_jax.data.tokenizers import CharacterTokenizer


class PieceTokenizer(CharacterTokenizer):
  """One token per character, and one per piece; where several fit, the longest is taken.

  >>> tokenizer = PieceTokenizer('0123456789+=', pieces=('12', '=12', '1+'))
  >>> tokenizer.encode('12+3=12'), tokenizer.decode([12, 10, 3, 13])
  ([12, 10, 3, 13], '12+3=12')
  """

  def __init__(self, alphabet: str, *, pieces: Sequence[str]):
    if strange := [piece for piece in pieces if len(piece) < 2 or {*piece} - {*alphabet}]:
      raise ValueError(
        f'PieceTokenizer: a piece is two or more characters of the alphabet {alphabet!r}, got {strange}.'
      )
    if len({*pieces}) < len(pieces):
      raise ValueError('PieceTokenizer: a piece is named twice.')
    super().__init__(alphabet)
    self._texts = (*alphabet, *pieces)
    self._number = {text: number for number, text in enumerate(self._texts)}
    self._special = {name: len(self._texts) + at for at, name in enumerate(self.SPECIALS)}
    self.pad = self._special['<pad>']
    self.stop_tokens = frozenset({self._special['<end>']})
    longest = sorted(self._texts, key=len, reverse=True)
    self._pattern = re.compile('|'.join(map(re.escape, longest)))

  def encode(self, text: str, *, begin: bool = False) -> list[int]:
    super().encode(text)  # refuses strange characters
    found = (self._number[piece] for piece in self._pattern.findall(text))
    return [self._special['<begin>']] * begin + [*found]

  def decode(self, tokens: Iterable[int]) -> str:
    return ''.join(self._texts[token] for token in tokens if token < len(self._texts))

  def strings(self) -> tuple[str | None, ...]:
    return (*self._texts, *self.SPECIALS)

  def token_bytes(self) -> tuple[bytes | None, ...]:
    return (*(text.encode() for text in self._texts), *[None] * len(self.SPECIALS))
