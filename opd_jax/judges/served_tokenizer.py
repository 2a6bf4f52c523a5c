"""Floor 3. Whether a server's tokenizer is the student's: all strings where they can be had, or how texts are cut."""

from typing import Any

import numpy as np

from opd_jax.data import vocabularies
from opd_jax.data.tokenizers import Tokenizer
from opd_jax.judges.client import Away, Client, Refused
from opd_jax.judges.introduction import Introduction
from opd_jax.judges.served_spec import Served
from opd_jax.judges.wire import BadReply
from opd_jax.storage import load

TEXTS, TOKENS = 4, 64  # that tokenizers are compared with


def compared(
  name: str, judge: Served, client: Client, found: Introduction, tokenizer: Tokenizer
) -> str:
  """Compares tokenizers: all strings where they can be had, or how a text is cut."""
  ours = tokenizer.strings()
  if judge.writes == 'text' and judge.tokenizer is None:
    return 'its tokenizer is its own affair'
  theirs = None if judge.tokenizer is None else load.strings_of(judge.tokenizer)
  if judge.tokenizer is not None and theirs is None:
    raise ValueError(f'judge {name}: {judge.tokenizer} holds no tokenizer to compare with.')
  if theirs is None and found.ours:
    told = client.persistently(lambda: client.get('/v1/vocabulary'))['strings']
    theirs = None if told is None else tuple(told)
  if theirs is not None:
    rows = {'student_rows': len(ours), 'judge_rows': len(theirs)}
    vocabularies.check_strings(ours, theirs, name=f'judge {name} ({judge.source})', **rows)
    return f'{len(theirs):,} strings of its tokenizer are ours'
  try:
    count = sum(
      _cut_alike(name, judge, client, found, text, tokenizer) for text in _texts(tokenizer)
    )
  except (Refused, Away, BadReply, KeyError, TypeError):
    return 'that its tokenizer is ours is taken on trust'
  return f'its tokenizer cuts {count} tokens as ours does'


def _texts(tokenizer: Tokenizer) -> list[str]:
  """Texts that many of the student's tokens make."""
  special = {*tokenizer.specials().values()}
  strings = tokenizer.strings()
  usual = [
    each for each in range(len(strings)) if each not in special and strings[each] is not None
  ]
  draws = np.random.default_rng(0).choice(np.array(usual), (TEXTS, TOKENS))
  texts = [tokenizer.decode(row) for row in draws.tolist()]
  return [text for text in texts if text and '\ufffd' not in text] or ['0123456789']


def _cut_alike(
  name: str, judge: Served, client: Client, found: Introduction, text: str, tokenizer: Tokenizer
) -> int:
  ours = tokenizer.encode(text)
  wanted: dict[str, Any] = {'model': found.model, 'prompt': text, 'add_special_tokens': False}
  theirs = client.post('/tokenize', wanted)['tokens']
  if [*theirs] != ours:
    place = next((n for n, (a, b) in enumerate(zip(ours, theirs, strict=False)) if a != b), 0)
    raise ValueError(
      f"judge {name} ({judge.source}): its tokenizer is not the student's: token {place} of {text[:40]!r} is "
      f'{theirs[place : place + 1]} there and {ours[place : place + 1]} here. Serve a model of the same family, or '
      "let it only write: writes = 'text'."
    )
  return len(ours)
