"""Floor 1. Renders questions and answers as tokens; student, teacher and reference may have different templates."""

import dataclasses
import itertools
from collections.abc import Sequence
from typing import NamedTuple

from opd_jax.data.tokenizers import Message, Tokenizer


class TaughtTokens(NamedTuple):
  """The tokens behind a prompt, and which of them are training targets."""

  tokens: Sequence[int]
  taught: Sequence[bool]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Template:
  """How prompts are rendered for one role (student, teacher, reference).

  Args:
    chat: render through the chat template; False sends the text as a document, for base models.
    thinking: switches thinking on or off, where the chat template can; None leaves its default.
    system: a system message in front; None adds none.
    suffix: appended to the question, e.g. where to put the answer.
  """

  chat: bool = True
  thinking: bool | None = None
  system: str | None = None
  suffix: str = ''

  def __post_init__(self):
    if not self.chat and (self.thinking is not None or self.system is not None):
      raise ValueError(
        'Template: thinking and system belong to chats; with chat=False leave them at None.'
      )

  def render(self, tokenizer: Tokenizer, prompt: str | Sequence[Message]) -> list[int]:
    """Tokens of a question (text, or messages) up to where the answer begins."""
    if not self.chat:
      if not isinstance(prompt, str):
        if len(prompt) != 1:
          raise ValueError(
            'Template: several messages need chat=True; with chat=False a prompt is one text.'
          )
        prompt = prompt[0]['content']
      return tokenizer.encode(prompt + self.suffix, begin=True)
    turns: list[Message] = (
      [{'role': 'user', 'content': prompt}] if isinstance(prompt, str) else list(prompt)
    )
    if not turns:
      raise ValueError('Template: a conversation without a message cannot be answered.')
    return self._chat(tokenizer, self._suffixed(turns))

  def turns(self, prompt: Sequence[Message]) -> list[Message]:
    """The messages of a question as a chat API takes them: with the system message and the suffix."""
    return [*self._system(), *self._suffixed([*prompt])]

  def _suffixed(self, turns: list[Message]) -> list[Message]:
    return [*turns[:-1], {**turns[-1], 'content': turns[-1]['content'] + self.suffix}]

  def _chat(self, tokenizer: Tokenizer, turns: list[Message]) -> list[int]:
    return tokenizer.chat([*self._system(), *turns], thinking=self.thinking)

  def _system(self) -> list[Message]:
    return [] if self.system is None else [{'role': 'system', 'content': self.system}]

  def response(
    self,
    tokenizer: Tokenizer,
    demonstration: str | Sequence[Message],
    prompt: Sequence[Message] = (),
  ) -> TaughtTokens:
    """Renders an answer to imitate, with its end token; of a conversation, only the assistant's turns are targets.

    Args:
      tokenizer: of the model that is trained.
      demonstration: a text; or turns that begin and end with the assistant.
      prompt: the messages before; a conversation needs them.
    """
    if not isinstance(demonstration, str):
      return self._conversation(tokenizer, list(prompt), demonstration)
    tokens = [
      *tokenizer.encode(demonstration),
      tokenizer.turn_end if self.chat else min(tokenizer.stop_tokens),
    ]
    return TaughtTokens(tokens, [True] * len(tokens))

  def _conversation(
    self, tokenizer: Tokenizer, earlier: list[Message], turns: Sequence[Message]
  ) -> TaughtTokens:
    """Tokens between two assistant turns are the difference of two renderings."""
    speakers = [turn['role'] == 'assistant' for turn in turns]
    if (
      not self.chat
      or not turns
      or not (speakers[0] and speakers[-1])
      or (True, True) in itertools.pairwise(speakers)
    ):
      raise ValueError(
        'Template: a conversation to imitate needs chat=True, begins and ends with an assistant turn, and '
        'never has two assistant turns in a row.'
      )
    earlier = self._suffixed(earlier)
    before, response, answer = self._chat(tokenizer, earlier), TaughtTokens([], []), ''
    for number, turn in enumerate(turns):
      earlier = [*earlier, turn]
      if speakers[number]:
        answer = turn['content']
        tokens, counts = self.response(tokenizer, answer)
      elif speakers[number + 1]:
        earlier = self._suffixed(earlier)
        after = self._chat(tokenizer, earlier)
        tokens, before = _behind(answer, before, after, tokenizer), after
        counts = [False] * len(tokens)
      else:
        continue
      response = TaughtTokens([*response.tokens, *tokens], [*response.taught, *counts])
    return response


def _behind(answer: str, before: list[int], after: list[int], tokenizer: Tokenizer) -> list[int]:
  """Returns the tokens of a longer rendering that follow the answer to the shorter one."""
  begin = len(before)
  end = after.index(tokenizer.turn_end, begin) if tokenizer.turn_end in after[begin:] else begin
  if after[:begin] != before or tokenizer.decode(after[begin:end]).strip() != answer.strip():
    raise ValueError(
      'the chat template rewrites earlier turns of a conversation; make each answer a row'
    )
  return after[end + 1 :]
