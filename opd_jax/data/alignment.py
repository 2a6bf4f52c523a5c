"""Floor 1. One text in the tokens of two models: minimal chunks that begin and end at the same bytes on both sides.

  student   1 | 2 | + | 3 | =1 | 2        bytes of tokens, added up: 1 2 3 4 6 7
  teacher   12    | + | 3 | =  | 12                                    2 3 4 5 7
  chunk     0   0   1   2   3    3        ends that both have:         2 3 4   7

The text is what the student's tokens write, byte for byte. Where the teacher's tokenizer writes another text (it
normalises, or a piece is no UTF-8), the two agree up to some byte: chunks up to there are exact, for a judge reads from
left to right; what follows belongs to no chunk.
"""

import dataclasses
import functools
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Int

from opd_jax.data import token_bytes
from opd_jax.data.tokenizers import Tokenizer

NONE = -1  # the chunk of a token that has none


class Aligned(NamedTuple):
  """A response in both kinds of tokens: m of the student, n of the teacher. Numbers of tokens begin with zero."""

  tokens: Int[np.ndarray, ' n']  # the teacher's
  chunk: Int[np.ndarray, ' m']  # of each of the student's tokens; NONE: it has no counterpart
  others: Int[np.ndarray, ' n']  # the chunk of each of the teacher's
  place: Int[np.ndarray, ' m']  # the teacher's token in which the student's begins
  offset: Int[np.ndarray, ' m']  # bytes of it that are written before
  within: Int[
    np.ndarray, ' m'
  ]  # the teacher's token in which the student's ends, or with which; -1: there is none
  depth: Int[np.ndarray, ' m']  # bytes of it that are written by then
  since: Int[
    np.ndarray, ' m'
  ]  # bytes of it that are written before the student's token; negative: it began before
  whole: Bool[np.ndarray, ' m']  # whether both end together
  spans: Bool[np.ndarray, ' m']  # whether the student's token goes on behind the end of that one
  owner: Int[np.ndarray, ' n']  # the student's token in which the teacher's ends
  last: Int[np.ndarray, ' m']  # the last of the teacher's tokens in the chunk


def aligned(
  tokens: Sequence[int],
  own: Int[np.ndarray, ' m'],
  theirs: Int[np.ndarray, ' n'],
  *,
  agree: int,
  longest: int | None = None,
) -> Aligned:
  """Aligns two rows of tokens by how many bytes each of them writes; linear in tokens and bytes.

  Args:
    tokens: the teacher's.
    own, theirs: bytes of each token of the student and of the teacher.
    agree: the bytes up to which both write the same.
    longest: a chunk with more tokens on either side is none.
  """
  ends, far = np.cumsum(own), np.cumsum(theirs)
  size = int(max(ends.max(initial=0), far.max(initial=0), agree)) + 1
  at = np.arange(size + 1)
  counts = [np.bincount(side, minlength=size + 1) for side in (ends, far)]
  common = (counts[0] > 0) & (counts[1] > 0) & (at > 0) & (at <= agree)
  until, done = int(at[common].max(initial=0)), np.cumsum(common)
  own_ends, far_ends = map(np.cumsum, counts)  # ends up to each byte
  # A token that writes nothing belongs to what follows it.
  chunk = done[np.maximum(ends - 1, ends - own)]
  others = done[np.maximum(far - 1, far - theirs)]
  inside = (own > 0) & (ends <= until)
  kept = (far <= until) & (others < done[-1])
  chunk, others = np.where(inside, chunk, NONE), others[kept]
  begins, far, theirs = np.minimum(ends - own, size), far[kept], theirs[kept]
  place = np.minimum(far_ends[begins], max(len(far) - 1, 0))
  offset = begins - (far - theirs)[place] if len(far) else np.zeros_like(begins)
  there = begins < until
  last = np.cumsum(np.bincount(others, minlength=1))[np.maximum(chunk, 0)] - 1
  starts, reached = far - theirs, (ends <= until) & (ends > 0)
  within = np.where(
    reached, far_ends[np.minimum(ends, size)], 0
  )  # the first token that ends behind
  open_ = np.append(starts, until)[np.minimum(within, len(starts))] < ends
  within = np.where(reached, within - ~open_, NONE)
  from_ = starts[np.maximum(within, 0)] if len(far) else np.zeros_like(ends)
  found = Aligned(
    tokens=np.asarray(tokens, np.int32)[: len(kept)][kept],
    chunk=chunk,
    others=others,
    place=np.where(there, place, 0),
    offset=np.where(there, offset, 0),
    within=within,
    depth=np.where(reached, ends - from_, 0),
    since=begins - from_,
    whole=reached & ~open_,
    spans=inside & (ends > far[place]) if len(far) else np.zeros(len(own), bool),
    owner=own_ends[np.maximum(far - 1, far - theirs)],
    last=np.maximum(last, 0),
  )
  return found if longest is None else _shorter(found, longest)


def _shorter(found: Aligned, longest: int) -> Aligned:
  """The same without the chunks that have too many tokens on one side."""
  counts = [np.bincount(side[side >= 0], minlength=1) for side in (found.chunk, found.others)]
  size = max(map(len, counts))
  most = np.maximum(*[np.pad(each, (0, size - len(each))) for each in counts])
  long = most > longest
  drop = lambda side: np.where((side >= 0) & long[np.maximum(side, 0)], NONE, side)
  return found._replace(chunk=drop(found.chunk))


@dataclasses.dataclass(frozen=True)
class Pair:
  """The tokenizers of a student and of a teacher.

  Args:
    student, teacher: the tokenizers.
    end: the teacher's token for the end of a response, where the student's has no namesake among its ends.
    longest: see `aligned`.
  """

  student: Tokenizer
  teacher: Tokenizer
  end: int
  longest: int | None = None

  @functools.cached_property
  def _own(self) -> tuple[bytes | None, ...]:
    return self.student.token_bytes()

  @functools.cached_property
  def written(self) -> tuple[bytes | None, ...]:
    """The bytes of the teacher's tokens."""
    return self.teacher.token_bytes()

  @functools.cached_property
  def ends(self) -> dict[int, int]:
    """For each token that ends a text of the student: the teacher's."""
    names = self.student.strings()
    theirs = {name: number for number, name in enumerate(self.teacher.strings()) if name}
    stops = self.teacher.stop_tokens | {self.teacher.turn_end}
    namesake = lambda token: theirs.get(names[token] or '', -1)
    return {
      token: namesake(token) if namesake(token) in stops else self.end
      for token in self.student.stop_tokens | {self.student.turn_end}
    }

  @functools.cached_property
  def controls(self) -> dict[int, int]:
    """The student's control tokens that the teacher has by the same name, and the teacher's."""
    theirs = self.teacher.specials()
    own = self.student.specials().items()
    return {number: theirs[name] for name, number in own if name in theirs} | self.ends

  @functools.cached_property
  def same(self) -> Int[np.ndarray, ' V']:
    """For each of the teacher's tokens the student's that writes the same, or stands for the same; NONE without one."""
    found = np.array([self._token_of.get(each or b'', NONE) for each in self.written], np.int32)
    return self._with_controls(found)

  @functools.cached_property
  def prefixes(self) -> Int[np.ndarray, 'O V']:
    """For each offset o and each of the teacher's tokens w: the student's longest token that w's bytes from o on begin
    with; NONE where there is none."""
    longest = max(map(len, self._token_of), default=0)
    table = np.full((max(len(each or b'') for each in self.written), len(self.written)), NONE)
    for number, text in enumerate(self.written):
      for begin in range(len(text or b'')):
        assert text is not None
        for end in range(min(len(text), begin + longest), begin, -1):
          if (token := self._token_of.get(text[begin:end])) is not None:
            table[begin, number] = token
            break
    table[0] = self._with_controls(table[0])
    return table.astype(np.int32)

  def _with_controls(self, found: Int[np.ndarray, ' V']) -> Int[np.ndarray, ' V']:
    """All that ends a text of the teacher ends the student's."""
    found = found.copy()
    first = min(self.ends, key=lambda token: (self.ends[token] != self.end, token))
    for token in self.teacher.stop_tokens | {self.teacher.turn_end}:
      found[token] = first
    for own, token in self.controls.items():
      if own not in self.ends or self.student.strings()[own] == self.teacher.strings()[token]:
        found[token] = own
    return found

  @functools.cached_property
  def leaves(self) -> frozenset[int]:
    """The student's tokens with which no longer one begins."""
    order = sorted(self._token_of)
    pairs = zip(order, [*order[1:], b''], strict=True)
    return frozenset(self._token_of[one] for one, other in pairs if not other.startswith(one))

  @functools.cached_property
  def _token_of(self) -> dict[bytes, int]:
    """The student's token that writes some bytes; of several the first that is no fallback."""
    names = self.student.strings()
    pairs = [(text, number) for number, text in enumerate(self._own) if text]
    order = sorted(pairs, key=lambda pair: (not token_bytes.is_fallback(names[pair[1]]), -pair[1]))
    return dict(order)  # the later ones stand

  def align(self, response: Sequence[int]) -> Aligned:
    """Re-tokenises a response, and aligns both rows of tokens."""
    tokens: list[int] = []
    theirs: list[int] = []
    own = np.array([self._size(token) for token in response], np.int64)
    parts: list[bytes] = []
    agree = 0

    def close() -> bool:
      nonlocal agree
      whole = b''.join(parts)
      parts.clear()
      found, sizes, same = self._encoded(whole)
      tokens.extend(found)
      theirs.extend(sizes)
      agree += same
      return same == len(whole)

    for token in response:
      if token in self.controls:
        if not close():
          break
        tokens.append(self.controls[token])
        theirs.append(1)
        agree += 1
      else:
        parts.append(self._own[token] or b'' if token < len(self._own) else b'')
    else:
      close()
    far = np.array(theirs, np.int64)
    found = aligned(tokens, own, far, agree=agree, longest=self.longest)
    return self._with_lead(found, far)

  def _with_lead(self, found: Aligned, sizes: Int[np.ndarray, ' n']) -> Aligned:
    """With the space that SentencePiece puts in front of a text counted as written."""
    written = [len(self.written[token] or b' ') for token in found.tokens]
    lead = np.array(written, np.int64) - sizes[: len(written)]
    if not lead.any():
      return found
    more, within = lead[found.place], np.maximum(found.within, 0)
    return found._replace(
      offset=found.offset + more,
      depth=found.depth + np.where(found.within < 0, 0, lead[within]),
      since=found.since + lead[within],
    )

  def _size(self, token: int) -> int:
    """Bytes of a token of the student; a control token that both have counts as one, another as none."""
    if token in self.controls:
      return 1
    return len(self._own[token] or b'') if token < len(self._own) else 0

  def _encoded(self, text: bytes) -> tuple[list[int], list[int], int]:
    """The teacher's tokens of a text, their bytes, and the bytes on which both agree."""
    try:
      whole = text.decode()
    except UnicodeDecodeError as error:  # the teacher reads up to there
      whole = text[: error.start].decode()
    if not whole:
      return [], [], 0
    try:
      tokens, sizes, again = self._tokens_of(whole)
      if again != whole.encode() and whole[0] == ' ':
        other = self._tokens_of(whole[1:])  # SentencePiece puts a space in front of a text
        tokens, sizes, again = other if other[2] == whole.encode() else (tokens, sizes, again)
    except ValueError:  # it has no tokens for this text
      return [], [], 0
    if again == b' ' + whole.encode():
      again, sizes[0] = again[1:], sizes[0] - 1
    both = min(len(again), len(text))
    unlike = np.frombuffer(again[:both], np.uint8) != np.frombuffer(text[:both], np.uint8)
    return tokens, sizes, int(np.argmax(unlike)) if unlike.any() else both

  def _tokens_of(self, text: str) -> tuple[list[int], list[int], bytes]:
    """The teacher's tokens of a text, their bytes, and what they write."""
    tokens = self.teacher.encode(text)
    pieces = [self.written[token] or b'' for token in tokens]
    return tokens, [len(piece) for piece in pieces], b''.join(pieces)
