"""Floor 1. What each role is shown: the same question may reach student and teacher in other words."""

import dataclasses
from collections.abc import Sequence

from opd_jax.data.tokenizers import Message, Tokenizer


@dataclasses.dataclass(frozen=True, kw_only=True)
class Template:
  """How one role (student, teacher, reference) is addressed.

  Args:
    chat: render through the chat template; False sends the text as a document, for base models.
    thinking: the switch of models that can think aloud; None leaves it to the chat template.
    system: a system message in front; None adds none.
    suffix: appended to the question, e.g. where to put the answer.
  """

  chat: bool = True
  thinking: bool | None = None
  system: str | None = None
  suffix: str = ''

  def __post_init__(self):
    if not self.chat and (self.thinking is not None or self.system is not None):
      raise ValueError('Template: thinking and system belong to chats; with chat=False leave them at None.')

  def render(self, tokenizer: Tokenizer, prompt: str | Sequence[Message]) -> list[int]:
    """Tokens of a question (text, or messages) up to where the answer begins."""
    if not self.chat:
      if not isinstance(prompt, str):
        if len(prompt) != 1:
          raise ValueError('Template: several messages need chat=True; with chat=False a prompt is one text.')
        prompt = prompt[0]['content']
      return tokenizer.encode(prompt + self.suffix, begin=True)
    turns: list[Message] = [{'role': 'user', 'content': prompt}] if isinstance(prompt, str) else list(prompt)
    if not turns:
      raise ValueError('Template: a conversation without a message cannot be answered.')
    turns[-1] = {**turns[-1], 'content': turns[-1]['content'] + self.suffix}
    if self.system is not None:
      turns.insert(0, {'role': 'system', 'content': self.system})
    return tokenizer.chat(turns, thinking=self.thinking)

  def response(self, tokenizer: Tokenizer, text: str) -> list[int]:
    """Tokens of an answer, with the one that ends it: what a model is taught to write."""
    return [*tokenizer.encode(text), tokenizer.turn_end if self.chat else min(tokenizer.stop_tokens)]
