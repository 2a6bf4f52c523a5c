"""Floor 3. The bodies of requests for completions, as OpenAI and vLLM write them.

What is more than there: `prompt_logprobs_from` leaves out the tokens in front of a response, `prompt_logprob_ids` asks
for chosen tokens of each position behind it, and `prompt_logprobs_packed` for packed numbers; see `replies`.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from opd_jax.data.tokenizers import Tokenizer
from opd_jax.inference.decoding import Decoding, Forbid, usual_rules
from opd_jax.models.config import ModelConfig
from opd_jax.serving.passes import Draft, Row

MOST_PROMPTS = 1024
BUDGET = 16  # of a request that names none, as OpenAI has it


class Served(NamedTuple):
  """What is served.

  Args:
    name: of the model, in requests.
    config: of the model.
    tokenizer: for texts; None where the folder has none.
    strings: of all ids, where they are known.
    top_k: the most of the likeliest tokens of a position.
    digest: of the weights.
  """

  name: str
  config: ModelConfig
  tokenizer: Tokenizer | None
  strings: tuple[str | None, ...] | None
  top_k: int
  digest: str


class Request(NamedTuple):
  """A request that was understood."""

  prompts: list[list[int]]
  top_k: int | None  # of the prompt; None: no log-probabilities of it
  start: int
  ids: list[np.ndarray | None]
  budget: int
  decoding: Decoding
  seed: int
  logprobs: int | None  # likeliest tokens of what is written
  echo: bool
  packed: bool  # numbers instead of a dictionary for each token


class NoSuchModel(ValueError):
  """A model that is not served here."""


def understood(body: Any, served: Served) -> Request:
  """A request in our terms; refuses what cannot be answered, in words."""
  if not isinstance(body, Mapping):
    raise ValueError('the body of a request is an object of JSON.')
  check_model(body, served)
  prompts = _prompts(body.get('prompt'), served)
  wanted, echo = body.get('prompt_logprobs'), bool(body.get('echo'))
  logprobs = _whole(body, 'logprobs', None, 0)
  if wanted is None and echo and logprobs is not None:
    wanted = logprobs
  top_k = _whole({'prompt_logprobs': wanted}, 'prompt_logprobs', None, 0)
  for asked in (top_k, logprobs):
    if asked is not None and asked > served.top_k:
      raise ValueError(
        f'{asked} likeliest tokens of a position are asked for, the maximum allowed is {served.top_k} (--max_top_k).'
      )
  start = _whole(body, 'prompt_logprobs_from', 1, 1)
  budget = _whole(body, 'max_tokens', BUDGET, 0)
  if _whole(body, 'n', 1, 1) != 1 or body.get('stream'):
    raise ValueError(
      'one text a prompt is written, and nothing is streamed: n = 1, stream = false.'
    )
  room = served.config.max_positions
  for prompt in prompts:
    if len(prompt) + budget > room:
      raise ValueError(
        f'a prompt has {len(prompt)} tokens and {budget} are to be written, the model has {room} positions.'
      )
    if top_k is not None and not start <= len(prompt):
      raise ValueError(f'prompt_logprobs_from is {start}, a prompt has {len(prompt)} tokens.')
  return Request(
    prompts,
    top_k,
    start,
    _ids(body, prompts, start, served),
    budget,
    decoding_of(body, served),
    _whole(body, 'seed', 0, 0) % (2**31 - 8),
    logprobs,
    echo,
    bool(body.get('prompt_logprobs_packed')) and not echo,
  )


def check_model(body: Mapping[str, Any], served: Served) -> None:
  if body.get('model') not in (None, served.name):
    raise NoSuchModel(
      f'the model {body["model"]!r} does not exist; {served.name!r} is served here.'
    )


def decoding_of(body: Mapping[str, Any], served: Served) -> Decoding:
  """The rules of a request, with the tokens that end a text."""
  number = lambda name, neutral: None if body.get(name) in (None, neutral) else float(body[name])
  top_k = body.get('top_k')
  rules = usual_rules(
    temperature=1.0 if body.get('temperature') is None else float(body['temperature']),
    top_k=None if top_k in (None, 0, -1) else int(top_k),
    top_p=number('top_p', 1),
    min_p=number('min_p', 0),
  )
  bias = {int(token): float(value) for token, value in (body.get('logit_bias') or {}).items()}
  if any(value > -100 for value in bias.values()):
    raise ValueError('logit_bias of -100 forbids a token here; other values are not known.')
  forbidden = tuple(sorted(token for token in bias if token < served.config.vocab_size))
  rules = ((Forbid(forbidden),) if forbidden else ()) + rules
  for name, neutral in (
    ('repetition_penalty', 1),
    ('presence_penalty', 0),
    ('frequency_penalty', 0),
  ):
    if number(name, neutral) is not None:
      raise ValueError(f'{name} is not known here; leave it at {neutral}.')
  own = () if served.tokenizer is None else served.tokenizer.stop_tokens
  stops = {*own, *(int(token) for token in body.get('stop_token_ids') or ())}
  if body.get('stop'):
    raise ValueError('stop texts are not known here; name tokens: stop_token_ids.')
  return Decoding(
    rules=rules,
    stop_tokens=tuple(sorted(token for token in stops if token < served.config.vocab_size)),
  )


def rows_of(request: Request) -> list[Row]:
  if request.top_k is None:
    return []
  return [
    Row(prompt, request.start, ids)
    for prompt, ids in zip(request.prompts, request.ids, strict=True)
  ]


def drafts_of(request: Request) -> list[Draft]:
  if not request.budget:
    return []
  return [
    Draft(prompt, request.decoding, request.budget, request.seed) for prompt in request.prompts
  ]


def _prompts(given: Any, served: Served) -> list[list[int]]:
  """Ids, lists of ids, a text, or texts."""
  several = (
    given if isinstance(given, list) and given and isinstance(given[0], list | str) else [given]
  )
  if len(several) > MOST_PROMPTS:
    raise ValueError(f'{len(several)} prompts in one request; {MOST_PROMPTS} at most.')
  prompts = []
  for each in several:
    if isinstance(each, str):
      each = encoded(each, served)
    _check_tokens(each, served)
    prompts.append(each)
  return prompts


def _check_tokens(tokens: Any, served: Served) -> None:
  size = served.config.vocab_size
  good = isinstance(tokens, list) and tokens and all(type(each) is int for each in tokens)
  if not good or not (min(tokens) >= 0 and max(tokens) < size):
    raise ValueError(
      f'a prompt is a text or a list of token ids from 0 to {size - 1}, with one token at least.'
    )


def encoded(text: str, served: Served, *, begin: bool = True) -> list[int]:
  if served.tokenizer is None:
    raise ValueError(f'{served.name} has no tokenizer files; send token ids.')
  return served.tokenizer.encode(text, begin=begin)


def _ids(
  body: Mapping[str, Any], prompts: Sequence[list[int]], start: int, served: Served
) -> list[np.ndarray | None]:
  given = body.get('prompt_logprob_ids')
  if given is None:
    return [None] * len(prompts)
  try:
    ids = np.array(given, np.int32)
  except (ValueError, OverflowError) as error:
    raise ValueError(f'prompt_logprob_ids is a list of lists of ids ({error}).') from error
  size = len(prompts[0]) - start
  if len(prompts) != 1 or ids.ndim != 2 or len(ids) != size:
    raise ValueError(
      f'prompt_logprob_ids has ids for each of the {size} tokens behind prompt_logprobs_from, of one prompt; its shape '
      f'is {ids.shape}.'
    )
  if ids.size and not (ids.min() >= 0 and ids.max() < served.config.vocab_size):
    raise ValueError(f'prompt_logprob_ids has ids beyond {served.config.vocab_size - 1}.')
  return [ids]


def _whole(body: Mapping[str, Any], name: str, default: Any, least: int) -> Any:
  value = body.get(name)
  if value is None:
    return default
  if isinstance(value, bool) or not isinstance(value, int) or value < least:
    raise ValueError(f'{name} is a whole number of at least {least}, got {value!r}.')
  return value
