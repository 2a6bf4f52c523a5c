"""Floor 3. The bodies of replies to requests for completions, as OpenAI and vLLM write them.

Of chosen tokens a reply tells in `prompt_logprobs_at`; packed numbers (`wire.packed`) are in `prompt_logprobs_packed`.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from opd_jax.judges.wire import packed
from opd_jax.serving.completions import Request, Served
from opd_jax.serving.passes import Written
from opd_jax.types import ENDINGS, Scores


def choice(
  number: int, request: Request, served: Served, scores: Scores | None, written: Written | None
) -> dict[str, Any]:
  """One entry of `choices`."""
  prompt, tokens = request.prompts[number], [] if written is None else written.tokens
  found: dict[str, Any] = {
    'index': number,
    'text': text_of(([*prompt] if request.echo else []) + tokens, served),
    'token_ids': tokens,
    'finish_reason': finish_of(written),
    'logprobs': None,
    'prompt_logprobs': None,
  }
  entries: list[dict[str, Any] | None] = []
  if scores is not None and request.packed:
    found['prompt_logprobs_packed'] = _packed(prompt, request, scores, request.ids[number])
  elif scores is not None and request.top_k is not None:
    entries = prompt_entries(prompt, request, served, scores)
    found['prompt_logprobs'] = entries
    if (ids := request.ids[number]) is not None:
      assert scores.at_ids is not None
      found['prompt_logprobs_at'] = np.asarray(scores.at_ids.logp)[:, : ids.shape[1]].tolist()
  if request.logprobs is not None:
    found['logprobs'] = _logprobs(prompt if request.echo else [], entries, written, served)
  return found


def prompt_entries(
  prompt: Sequence[int], request: Request, served: Served, scores: Scores
) -> list[dict[str, Any] | None]:
  """vLLM's list: for each token nothing, or the log-probabilities of the best tokens and its own, by id."""
  assert scores.top_k is not None and request.top_k is not None
  logps = np.asarray(scores.logp).tolist()
  ids, best = (np.asarray(each)[:, : request.top_k].tolist() for each in scores.top_k)
  entries: list[dict[str, Any] | None] = [None] * request.start
  for token, logp, names, numbers in zip(prompt[request.start :], logps, ids, best, strict=True):
    entry = {
      str(name): {'logprob': number, 'rank': rank, 'decoded_token': string_of(name, served)}
      for rank, (name, number) in enumerate(zip(names, numbers, strict=True), start=1)
    }
    own = {'logprob': logp, 'rank': None, 'decoded_token': string_of(token, served)}
    entry.setdefault(str(token), own)
    entries.append(entry)
  return entries


def _packed(
  prompt: Sequence[int], request: Request, scores: Scores, ids: np.ndarray | None
) -> dict[str, str]:
  assert scores.top_k is not None and request.top_k is not None
  top_ids, top_logp = (np.asarray(each)[:, : request.top_k] for each in scores.top_k)
  found = {
    'tokens': packed(np.asarray(prompt[request.start :]), '<i4'),
    'logp': packed(np.asarray(scores.logp), '<f4'),
    'top_ids': packed(top_ids, '<i4'),
    'top_logp': packed(top_logp, '<f4'),
  }
  if ids is not None:
    assert scores.at_ids is not None
    found['at_logp'] = packed(np.asarray(scores.at_ids.logp)[:, : ids.shape[1]], '<f4')
  return found


def _logprobs(
  prompt: Sequence[int],
  entries: Sequence[dict[str, Any] | None],
  written: Written | None,
  served: Served,
) -> dict[str, Any]:
  """OpenAI's lists: of an echoed prompt, and of what was written."""
  own = [
    None if each is None else each[str(token)]['logprob']
    for token, each in zip(prompt, entries, strict=False)
  ]
  best = [
    None
    if each is None
    else {part['decoded_token'] or name: part['logprob'] for name, part in each.items()}
    for each in entries[: len(prompt)]
  ]
  tokens = [*prompt, *(written.tokens if written else ())]
  return {
    'tokens': [string_of(token, served) or str(token) for token in tokens],
    'token_logprobs': [*own, *(written.logps if written else ())],
    'top_logprobs': [*best, *[None] * (len(tokens) - len(best))],
  }


def finish_of(written: Written | None) -> str:
  return 'stop' if written is not None and ENDINGS[written.ended_by] == 'stop' else 'length'


def text_of(tokens: Sequence[int], served: Served) -> str:
  return '' if served.tokenizer is None else served.tokenizer.decode(tokens)


def string_of(token: int, served: Served) -> str | None:
  strings = served.strings
  return strings[token] if strings is not None and token < len(strings) else None
