"""Floor 3. What a server is asked and what it answers, as two kinds of servers write it: a row to a request.

An answer is read by response position. It names the tokens that it is about, and they are compared with those that were
asked: a row that is off by one, short, or of other tokens is a bad reply, and never a loss.
"""

import base64
import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

LEAST = (
  -9000.0
)  # vLLM writes -9999 where a probability is zero; no softmax of finite logits is so far down
MASS = 1e-3  # probabilities that were sent may sum to so much more than one
PLAIN = {  # a server's own defaults, e.g. of a model's generation_config.json, are overruled
  'temperature': 1.0,
  'top_p': 1.0,
  'top_k': -1,
  'min_p': 0.0,
  'repetition_penalty': 1.0,
  'presence_penalty': 0.0,
  'frequency_penalty': 0.0,
}
OWNER = 'opd_jax'  # of a model of `opd serve`
PATHS = {'completions': '/v1/completions', 'sglang': '/generate'}


class BadReply(Exception):
  """What came is no answer to what was asked; asking again may help."""


class Question(NamedTuple):
  """One row.

  Args:
    tokens: of prompt and response.
    start: where the response begins, at least 1.
    top_k: how many of the likeliest tokens of each position.
    ids: further tokens of each position, [R, C].
    temperature: for the check that a server answers at temperature one.
  """

  tokens: Sequence[int]
  start: int
  top_k: int = 0
  ids: np.ndarray | None = None
  temperature: float = 1.0

  @property
  def response(self) -> Sequence[int]:
    return self.tokens[self.start :]


class Answer(NamedTuple):
  """Log-probabilities of one row."""

  logp: np.ndarray  # [R]
  top_ids: np.ndarray  # [R, K], best first
  top_logp: np.ndarray  # [R, K]
  at_logp: np.ndarray | None  # [R, C]


def body(question: Question, *, model: str, protocol: str, ours: bool) -> dict[str, Any]:
  """The body of a request.

  Args:
    question: the row.
    model: its name at the server.
    protocol: a key of `PATHS`.
    ours: whether `opd serve` answers, which can leave prompts out and tell of chosen tokens.
  """
  tokens, start = [*question.tokens], question.start
  if protocol == 'sglang':
    asked = {
      'input_ids': tokens,
      'sampling_params': {'max_new_tokens': 0, 'temperature': question.temperature},
      'return_logprob': True,
      'logprob_start_len': start - 1,  # it has no number for the first token behind this one
      'top_logprobs_num': question.top_k,
    }
    if question.ids is not None:
      asked['token_ids_logprob'] = np.unique(question.ids).tolist()
    return asked
  asked = {
    'model': model,
    'prompt': tokens,
    'prompt_logprobs': question.top_k,
    'max_tokens': 0 if ours else 1,
    **PLAIN,
    'temperature': question.temperature,
  }
  if ours:
    asked |= {'prompt_logprobs_from': start, 'prompt_logprobs_packed': True}
    if question.ids is not None:
      asked['prompt_logprob_ids'] = question.ids.tolist()
  return asked


def read(reply: Any, question: Question, *, protocol: str) -> Answer:
  """The numbers of a reply; raises `BadReply` with what is wrong."""
  try:
    found = (
      _of_sglang(reply, question) if protocol == 'sglang' else _of_completions(reply, question)
    )
  except (KeyError, IndexError, TypeError, AttributeError, ValueError) as error:
    raise BadReply(f'it has no log-probabilities where they belong ({error!r})') from error
  _check(found, question)
  return found


def _of_completions(reply: Any, question: Question) -> Answer:
  [choice] = reply['choices']
  if 'prompt_logprobs_packed' in choice:
    return _unpacked(choice['prompt_logprobs_packed'], question)
  rows, count = choice['prompt_logprobs'], len(question.tokens)
  if not rows or len(rows) != count:
    raise BadReply(f'it tells of {len(rows or ())} tokens, {count} were asked for')
  entries, at = rows[question.start :], None
  if question.ids is not None:
    at = _numbers(choice['prompt_logprobs_at'])
  told = [{int(token): each['logprob'] for token, each in row.items()} for row in entries]
  return _sorted(told, question)._replace(at_logp=at)


def packed(array: np.ndarray, kind: str) -> str:
  """Numbers as text: little-endian, in base64. A dictionary for each token would take sixty times as long to read."""
  return base64.b64encode(np.ascontiguousarray(array, kind).tobytes()).decode()


def _unpacked(told: Mapping[str, str], question: Question) -> Answer:
  """The same numbers as `opd serve` packs them."""
  size, k = len(question.response), question.top_k
  array = lambda name, kind, *shape: (
    np.frombuffer(base64.b64decode(told[name]), kind).astype(kind[1:]).reshape(size, *shape)
  )
  if array('tokens', '<i4').tolist() != [*question.response]:
    raise BadReply('it tells of other tokens than those that were asked for')
  at = None
  if question.ids is not None:
    at = array('at_logp', '<f4', question.ids.shape[1])
  return Answer(array('logp', '<f4'), array('top_ids', '<i4', k), array('top_logp', '<f4', k), at)


def _of_sglang(reply: Any, question: Question) -> Answer:
  told, size = reply['meta_info'], len(question.response)
  chosen = told['input_token_logprobs'][-size:]
  if [each[1] for each in chosen] != [*question.response]:
    raise BadReply('it tells of other tokens than those that were asked for')
  entries = [{token: number} for number, token, *_ in chosen]
  if question.top_k:
    for entry, best in zip(entries, told['input_top_logprobs'][-size:], strict=True):
      entry |= {token: number for number, token, *_ in best}
  at = None
  if question.ids is not None:
    tables = [
      {token: number for number, token, *_ in each}
      for each in told['input_token_ids_logprobs'][-size:]
    ]
    at = _numbers(
      [
        [table[token] for token in ids]
        for table, ids in zip(tables, question.ids.tolist(), strict=True)
      ]
    )
  return _sorted(entries, question)._replace(at_logp=at)


def _sorted(entries: Sequence[Mapping[int, float]], question: Question) -> Answer:
  """Best first, whatever the order in which they came; of equal ones the lower id, as our scorer has them."""
  k, chosen, ids, logps = question.top_k, [], [], []
  for place, (token, entry) in enumerate(zip(question.response, entries, strict=True)):
    if token not in entry:
      raise BadReply(f'token {place} of the response is {token}, and it tells of {[*entry][:3]} …')
    if len(entry) < k:
      raise BadReply(f'it sends {len(entry)} tokens at token {place} of the response, not {k}')
    numbers = [*entry.values()]
    if None in numbers or not all(map(math.isfinite, numbers)) or min(numbers) < LEAST:
      raise BadReply(f'a log-probability at token {place} of the response is not finite')
    best = sorted(entry.items(), key=lambda pair: (-pair[1], pair[0]))[:k]
    chosen.append(entry[token])
    ids.append([each for each, _ in best])
    logps.append([number for _, number in best])
  shape = (len(chosen), k)
  return Answer(
    _numbers(chosen), np.array(ids, np.int32).reshape(shape), _numbers(logps).reshape(shape), None
  )


def _numbers(values: Any) -> np.ndarray:
  try:
    return np.array(values, np.float32)
  except ValueError as error:
    raise BadReply(f'its numbers have no shape ({error})') from error


def _check(found: Answer, question: Question) -> None:
  """Refuses what is no log-probability of a whole vocabulary."""
  fields = [found.logp, found.top_logp, *(() if found.at_logp is None else (found.at_logp,))]
  if question.ids is not None and (
    found.at_logp is None or found.at_logp.shape != question.ids.shape
  ):
    raise BadReply('it does not tell of the chosen tokens')
  for field in fields:
    if not np.isfinite(field).all() or (field < LEAST).any():
      raise BadReply('a log-probability is not finite')
    if (field > MASS).any():
      raise BadReply(f'a log-probability is above zero: {float(field.max()):.3g}')
  if (mass(found, question) > 1 + MASS).any():
    raise BadReply(
      'probabilities of one position sum to more than one: they are not of the whole vocabulary'
    )


def mass(found: Answer, question: Question) -> np.ndarray:
  """What was sent of each position, with the written token: its probabilities in sum, [R]."""
  outside = (found.top_ids != np.asarray(question.response)[:, None]).all(axis=1)
  return np.exp(found.top_logp).sum(axis=1) + np.where(outside, np.exp(found.logp), 0.0)
