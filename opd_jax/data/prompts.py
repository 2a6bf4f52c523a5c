"""Floor 1. Prompts: from a row to tokens, from tokens to one left-padded batch."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from opd_jax.data.templates import Template
from opd_jax.data.tokenizers import Tokenizer
from opd_jax.types import Prompts


def left_padded(
  rows: Sequence[Sequence[int]], *, width: int, pad: int, groups: Sequence[int] | None = None
) -> Prompts:
  """Prompts of `width` columns; every response will start in column `width`.

  Args:
    rows: the tokens of each prompt; none may be empty or longer than `width`.
    width: P.
    pad: the token that fills the left; no result depends on it.
    groups: which rows answer the same question; None makes each row its own group.
  """
  for number, row in enumerate(rows):
    if not 0 < len(row) <= width:
      raise ValueError(
        f'prompts: row {number} has {len(row)} tokens, a prompt must have 1 to {width} (P). '
        'Raise P, or drop or shorten the row; a prompt is never cut silently.'
      )
  tokens = np.full((len(rows), width), pad, np.int32)
  for filled, row in zip(tokens, rows, strict=True):
    filled[width - len(row) :] = row
  numbers = np.arange(len(rows), dtype=np.int32)
  return Prompts(
    tokens=tokens,
    length=np.array([len(row) for row in rows], np.int32),
    row=numbers,
    group=numbers if groups is None else np.asarray(groups, np.int32),
  )


def unpadded(prompts: Prompts) -> list[list[int]]:
  """The tokens of each prompt, without what `left_padded` put in front."""
  return [
    row[len(row) - n :].tolist() for row, n in zip(prompts.tokens, prompts.length, strict=True)
  ]


def tokens_of(
  row: Mapping[str, Any], tokenizer: Tokenizer | None, *, name: str, vocab_size: int
) -> list[int]:
  """Tokens of a prompt row: {"tokens": […]}, {"text": "…"} or {"messages": […]}.

  Args:
    row: the prompt.
    tokenizer: needed for text and messages only.
    name: where the row comes from, for errors.
    vocab_size: of the model that will read it.
  """
  kinds = [kind for kind in ('tokens', 'text', 'messages') if kind in row]
  if len(kinds) != 1:
    raise ValueError(
      f'{name}: a prompt has one of "tokens", "text", "messages"; this one has {sorted(row)}.'
    )
  if kinds == ['tokens']:
    return token_list(row, 'tokens', name=name, vocab_size=vocab_size)
  if tokenizer is None:
    raise ValueError(
      f'{name}: {kinds[0]!r} needs a tokenizer and the model folder has none. Give token ids as {{"tokens": […]}}, '
      'or put tokenizer.json beside the model.'
    )
  template = Template(chat=kinds == ['messages'])
  return template.render(tokenizer, row[kinds[0]])


def token_list(row: Mapping[str, Any], key: str, *, name: str, vocab_size: int) -> list[int]:
  """The token ids under `key`, each one in the vocabulary."""
  tokens = row.get(key)
  if not isinstance(tokens, list) or not all(
    isinstance(token, int) and 0 <= token < vocab_size for token in tokens
  ):
    raise ValueError(
      f'{name}: {key!r} must be a list of token ids from 0 to {vocab_size - 1}, got {str(tokens)[:80]}.'
    )
  return tokens
