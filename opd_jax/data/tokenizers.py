"""Floor 1. Text <-> tokens behind one small protocol."""

import functools
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import jinja2

from opd_jax.data import token_bytes
from opd_jax.data.time_limit import limited

FILES = ('tokenizer.json', 'tokenizer.model', 'vocab.json', 'vocab.txt', 'spiece.model')
MARK = '\ue0f0'  # of a private area: stands around the place of a control token's text while a chat is rendered
Message = Mapping[str, str]  # {'role': 'user', 'content': '…'}


@runtime_checkable
class Tokenizer(Protocol):
  """What the library needs from a tokenizer. `stop_tokens` is a set: base and chat models end differently."""

  pad: int
  stop_tokens: frozenset[int]

  @property
  def turn_end(self) -> int:
    """The token with which an answer of this chat template ends."""
    ...

  def encode(self, text: str, *, begin: bool = False) -> list[int]:
    """Tokens of `text`; `begin` prepends the tokens that start a document of this model, if it has any."""
    ...

  def decode(self, tokens: Iterable[int]) -> str: ...

  def chat(self, messages: Sequence[Message], *, thinking: bool | None = None) -> list[int]:
    """A conversation, rendered up to where the assistant begins to write."""
    ...

  def strings(self) -> tuple[str | None, ...]:
    """The token string of every id; None for a hole in the numbering."""
    ...

  def specials(self) -> Mapping[str, int]:
    """Tokens that stand for structure, not text."""
    ...

  def token_bytes(self) -> tuple[bytes | None, ...]:
    """The bytes that every id writes; None for control tokens and holes."""
    ...


class CharacterTokenizer:
  """One token per character of an alphabet, then a few special tokens. For tiny worlds.

  >>> abc = CharacterTokenizer('0123456789+=')
  >>> abc.encode('1+1=2'), abc.decode([1, 10, 1, 11, 2])
  ([1, 10, 1, 11, 2], '1+1=2')
  """

  SPECIALS = ('<pad>', '<begin>', '<end>', '<system>', '<user>', '<assistant>', '<think>', '</think>')  # fmt: skip

  def __init__(self, alphabet: str):
    if len(set(alphabet)) != len(alphabet):
      raise ValueError(f'CharacterTokenizer: the alphabet {alphabet!r} names a character twice.')
    self._alphabet = alphabet
    self._ids = {character: number for number, character in enumerate(alphabet)}
    self._special = {name: len(alphabet) + number for number, name in enumerate(self.SPECIALS)}
    self.pad = self._special['<pad>']
    self.stop_tokens = frozenset({self._special['<end>']})

  @property
  def turn_end(self) -> int:
    return self._special['<end>']

  def encode(self, text: str, *, begin: bool = False) -> list[int]:
    if strange := sorted(set(text) - self._ids.keys()):
      raise ValueError(f'CharacterTokenizer: {strange} are not in the alphabet {self._alphabet!r}.')
    return [self._special['<begin>']] * begin + [self._ids[character] for character in text]

  def decode(self, tokens: Iterable[int]) -> str:
    return ''.join(self._alphabet[token] for token in tokens if token < len(self._alphabet))

  def chat(self, messages: Sequence[Message], *, thinking: bool | None = None) -> list[int]:
    turns = [self._special['<begin>']]
    for message in messages:
      turns += [
        self._role(message['role']),
        *self.encode(message['content']),
        self._special['<end>'],
      ]
    turns.append(self._special['<assistant>'])
    return turns + (
      [self._special['<think>'], self._special['</think>']] if thinking is False else []
    )

  def _role(self, role: str) -> int:
    if f'<{role}>' not in ('<system>', '<user>', '<assistant>'):
      raise ValueError(
        f"CharacterTokenizer: unknown role {role!r}; use 'system', 'user' or 'assistant'."
      )
    return self._special[f'<{role}>']

  def strings(self) -> tuple[str | None, ...]:
    return (*self._alphabet, *self.SPECIALS)

  def specials(self) -> Mapping[str, int]:
    return dict(self._special)

  def token_bytes(self) -> tuple[bytes | None, ...]:
    return (*(character.encode() for character in self._alphabet), *[None] * len(self.SPECIALS))


class ByteTokenizer(CharacterTokenizer):
  """Every text, as its UTF-8 bytes: 256 tokens and the special ones. Needs no files."""

  def __init__(self):
    super().__init__(bytes(range(256)).decode('latin-1'))

  def encode(self, text: str, *, begin: bool = False) -> list[int]:
    return super().encode(text.encode('utf-8').decode('latin-1'), begin=begin)

  def decode(self, tokens: Iterable[int]) -> str:
    return super().decode(tokens).encode('latin-1').decode('utf-8', errors='replace')

  def token_bytes(self) -> tuple[bytes | None, ...]:
    return (*(bytes([byte]) for byte in range(256)), *[None] * len(self.SPECIALS))


class HubTokenizer:
  """A published tokenizer from a local folder. Code in the folder is never run."""

  def __init__(self, folder: str | Path, *, stop_tokens: Sequence[str] | None = None):
    """Args:
    folder: the folder with tokenizer.json or other tokenizer files.
    stop_tokens: token strings that end a response; None takes what the folder declares: the end token
      of the tokenizer and those of generation_config.json.
    """
    import transformers  # seconds to import: only for those who use it

    if not any((Path(folder) / file).is_file() for file in FILES):
      raise ValueError(
        f'tokenizer: {folder} has no tokenizer file that is read without running foreign code '
        f'({", ".join(FILES[:3])} …). Put it beside the weights.'
      )
    try:
      # Without trust_remote_code an `auto_map` in the folder is ignored.
      self._inner: Any = transformers.AutoTokenizer.from_pretrained(
        str(folder), trust_remote_code=False
      )
    except Exception as error:
      raise ValueError(
        f'tokenizer: {folder} does not give one without running foreign code ({type(error).__name__}: {error}). '
        'It needs tokenizer.json and tokenizer_config.json.'
      ) from error
    self.stop_tokens = (
      self._named(stop_tokens) if stop_tokens is not None else self._declared(Path(folder))
    )
    if not self.stop_tokens:
      raise ValueError(
        f'tokenizer: {folder} declares no token that ends a text. Pass stop_tokens, e.g. stop_tokens=("<|im_end|>",).'
      )
    self.folder = Path(folder)
    self.pad = (
      self._inner.pad_token_id if self._inner.pad_token_id is not None else min(self.stop_tokens)
    )

  @functools.cached_property
  def turn_end(self) -> int:
    mark = 'the answer stands here'
    rendered = ''
    if self._inner.chat_template:
      turns = [{'role': 'user', 'content': 'a question'}, {'role': 'assistant', 'content': mark}]
      rendered = self._rendered(turns)
    special = set(self.specials().values())
    behind = (
      token for token in self._with_controls(rendered.rpartition(mark)[2]) if token in special
    )
    return next(behind, min(self.stop_tokens))

  def _declared(self, folder: Path) -> frozenset[int]:
    ends = {self._inner.eos_token_id}
    for file in (folder / 'generation_config.json', folder / 'config.json'):
      try:
        content = json.loads(file.read_text()) if file.is_file() else {}
      except ValueError as error:
        raise ValueError(
          f'tokenizer: {file} is not valid JSON ({error}). Download it again.'
        ) from error
      for part in (content, content.get('text_config') or {}):  # of a model that sees, too
        listed = part.get('eos_token_id')
        ends |= set(listed) if isinstance(listed, list) else {listed}
    return frozenset(ends - {None})

  def _named(self, names: Sequence[str]) -> frozenset[int]:
    vocabulary = self._inner.get_vocab()
    if unknown := [name for name in names if name not in vocabulary]:
      raise ValueError(f'tokenizer: the stop tokens {unknown} are not in the vocabulary.')
    return frozenset(vocabulary[name] for name in names)

  def encode(self, text: str, *, begin: bool = False) -> list[int]:
    """See `Tokenizer`. Text that looks like a control token stays text."""
    if not (held := [name for name in self._controls if name in text]):
      return self._with_controls(text, begin=begin)
    tokens = self._inner.encode(text, add_special_tokens=False, split_special_tokens=True)
    if stray := {self._controls[name] for name in held} & {*tokens}:
      raise ValueError(
        f'the text holds {held[0]!r}, which this tokenizer cannot write but as its control token {min(stray)}'
      )
    return [*(self._with_controls('', begin=True) if begin else ()), *tokens]

  @functools.cached_property
  def _controls(self) -> dict[str, int]:
    return dict(self.specials())

  def _with_controls(self, text: str, *, begin: bool = False) -> list[int]:
    return list(self._inner.encode(text, add_special_tokens=begin))

  def decode(self, tokens: Iterable[int]) -> str:
    return self._inner.decode(list(tokens), skip_special_tokens=True)

  def chat(self, messages: Sequence[Message], *, thinking: bool | None = None) -> list[int]:
    template = self._inner.chat_template
    if not template:
      raise ValueError(
        'tokenizer: it has no chat template (a base model?). Send plain text, or add chat_template.jinja.'
      )
    if thinking is not None and 'enable_thinking' not in str(template):
      raise ValueError(
        f'tokenizer: thinking={thinking} was asked for, but its chat template has no such switch. '
        'Leave thinking at None.'
      )
    options = {} if thinking is None else {'enable_thinking': thinking}
    marked, held = self._marked(messages)
    text = self._rendered(marked, add_generation_prompt=True, **options)
    if not held:
      return self._with_controls(text)  # the template writes the begin token itself
    tokens: list[int] = []
    for number, piece in enumerate(re.split(f'{MARK}(\\d+){MARK}', text)):
      tokens += self.encode(held[int(piece)]) if number % 2 else self._with_controls(piece)
    return tokens

  def _marked(self, messages: Sequence[Message]) -> tuple[list[Message], list[str]]:
    """The messages with a mark in the place of each control token in their text, and the texts of these."""
    held: list[str] = []

    def mark(match: re.Match[str]) -> str:
      held.append(match[0])
      return f'{MARK}{len(held) - 1}{MARK}'

    names = '|'.join(map(re.escape, sorted(self._controls, key=len, reverse=True)))
    if not names:
      return [*messages], held
    turns: list[Message] = [
      {**each, 'content': re.sub(names, mark, each['content'])} for each in messages
    ]
    return turns, held

  def _rendered(self, messages: Sequence[Message], **options: Any) -> str:
    """The chat template's text; transformers renders in jinja's sandbox."""
    render = lambda: self._inner.apply_chat_template([*messages], tokenize=False, **options)
    try:
      return limited(render)
    except jinja2.TemplateSyntaxError as error:
      reason = f'has a mistake in line {error.lineno}: {error.message}'
    except jinja2.exceptions.SecurityError as error:
      reason = f'does what the sandbox forbids: {error}'
    except jinja2.TemplateError as error:  # how templates refuse roles out of order
      reason = f'refuses this conversation: {error}'
    except Exception as error:
      reason = f'fails ({type(error).__name__}: {error})'
    raise ValueError(f'tokenizer: the chat template {" ".join(reason.split())}')

  def strings(self) -> tuple[str | None, ...]:
    vocabulary = self._inner.get_vocab()
    names: list[str | None] = [None] * (max(vocabulary.values()) + 1)
    for name, number in vocabulary.items():
      names[number] = name
    return tuple(names)

  def specials(self) -> Mapping[str, int]:
    return {
      str(token): number
      for number, token in self._inner.added_tokens_decoder.items()
      if token.special
    }

  def token_bytes(self) -> tuple[bytes | None, ...]:
    return token_bytes.of_published(self._inner, self.strings())
