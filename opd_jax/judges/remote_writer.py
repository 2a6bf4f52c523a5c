"""Floor 3. A served teacher that writes: tokens of the student's vocabulary, or texts as any chat API gives them."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from opd_jax.data.templates import Template
from opd_jax.data.tokenizers import Message
from opd_jax.inference.decoding import Decoding
from opd_jax.judges.remote import ServedJudge
from opd_jax.judges.served_spec import sampling_of
from opd_jax.judges.wire import BadReply
from opd_jax.processes import agreed, first_does
from opd_jax.rollouts.distant import Text

ENDED = {'stop': 'stop', 'length': 'budget'}


def seeds_of(key: Sequence[int], rows: Sequence[int]) -> list[int]:
  """A seed for each row, from the key of the run and the row's number: a server that takes seeds repeats itself."""
  draw = lambda row: int(np.random.SeedSequence([*key, row]).generate_state(1)[0] >> 1)
  return [draw(row) for row in rows]


def tokens_written(
  judge: ServedJudge,
  prompts: Sequence[Sequence[int]],
  seeds: Sequence[int],
  *,
  decoding: Decoding,
  budget: int,
  columns: int,
) -> list[Text]:
  """Responses to prompts of tokens.

  Args:
    judge: who writes.
    prompts, seeds: of each row.
    decoding: rules, and the tokens that end a response.
    budget: most tokens of a response.
    columns: entries of the student's vocabulary; a token beyond is refused.
  """
  asked = {
    'model': judge.known.model,
    'max_tokens': budget,
    'stop_token_ids': [*decoding.stop_tokens],
    'return_token_ids': True,
    'logprobs': 0,
    **sampling_of(decoding),
  }
  if not judge.known.ours:  # others may have fewer rows in their table, and refuse a bias beyond
    asked.pop('logit_bias', None)

  def read(reply: Any) -> tuple[list[int], list[float] | None, str]:
    [choice] = reply['choices']
    tokens = choice.get('token_ids')
    if tokens is None:
      raise BadReply("it returns no token_ids; let it write texts: writes = 'text'")
    if not all(0 <= token < columns for token in tokens) or len(tokens) > budget:
      raise BadReply('it wrote tokens that the student does not have, or too many')
    logps = (choice.get('logprobs') or {}).get('token_logprobs')
    logps = logps if logps is not None and len(logps) == len(tokens) else None
    return tokens, logps, ENDED.get(choice.get('finish_reason'), 'stop')

  bodies = [
    {**asked, 'prompt': [*prompt], 'seed': seed}
    for prompt, seed in zip(prompts, seeds, strict=True)
  ]
  return [Text(*each) for each in _asked(judge, '/v1/completions', bodies, read)]


def texts_written(
  judge: ServedJudge,
  conversations: Sequence[Sequence[Message]],
  seeds: Sequence[int],
  *,
  template: Template,
  decoding: Decoding,
  budget: int,
) -> list[Text]:
  """Responses to conversations, as texts that the student's tokenizer reads.

  Args:
    judge: who writes.
    conversations, seeds: of each row.
    template: of the student: ends a response as the student would.
    decoding: rules.
    budget: most tokens of a response.
  """
  asked = {'model': judge.known.model, 'max_tokens': budget, **sampling_of(decoding)}
  asked = {
    name: value
    for name, value in asked.items()
    if name != 'logit_bias' and (name != 'min_p' or value)
  }

  def read(reply: Any) -> tuple[list[int], None, str]:
    [choice] = reply['choices']
    text = choice['message']['content'] or ''
    try:
      tokens = [*template.response(judge.tokenizer, text).tokens]
    except ValueError as error:
      raise BadReply(f'the student cannot write what it wrote, {text[:60]!r}: {error}') from error
    cut = choice.get('finish_reason') == 'length' or len(tokens) > budget
    return (tokens[:-1] if cut else tokens)[:budget], None, 'budget' if cut else 'stop'

  bodies = [
    {**asked, 'messages': [*messages], 'seed': seed}
    for messages, seed in zip(conversations, seeds, strict=True)
  ]
  return [Text(*each) for each in _asked(judge, '/v1/chat/completions', bodies, read)]


def _asked(
  judge: ServedJudge, path: str, bodies: Sequence[Mapping[str, Any]], read: Callable[[Any], Any]
) -> list[Any]:
  """What the first process is told, in every process."""

  def one(body: Mapping[str, Any]) -> Any:
    assert judge.client is not None
    try:
      return read(judge.client.post(path, body))
    except (KeyError, TypeError, ValueError, IndexError) as error:
      raise BadReply(f'it wrote nothing where text belongs ({error!r})') from error

  def everyone() -> list[Any]:
    assert judge.client is not None
    asks = [lambda body=body: one(body) for body in bodies]
    return judge.client.each(asks, lambda place: f'row {place}')

  return agreed(first_does(everyone))
