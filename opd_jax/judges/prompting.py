"""Floor 3. The prompts of judges: rendered from what their context shows, and kept where a response has room."""

from collections.abc import Sequence
from typing import Literal

from opd_jax.data.templates import Template
from opd_jax.data.tokenizers import Message, Tokenizer
from opd_jax.judges.scenes import Context, Scene, shown

Tokens = list[int] | None  # None: the judge has no opinion of the row


def messages_of(context: Context | None, scene: Scene, *, judge: str) -> Sequence[Message] | None:
  """What a judge is shown of a row; None where its context shows nothing."""
  return scene.problem.messages if context is None else shown(context, scene, judge=judge)


def rendered(
  scenes: Sequence[Scene],
  *,
  context: Context | None,
  template: Template,
  tokenizer: Tokenizer,
  judge: str,
) -> list[Tokens]:
  """The prompt of every row."""
  messages = (messages_of(context, scene, judge=judge) for scene in scenes)
  return [None if each is None else template.render(tokenizer, each) for each in messages]


def with_room(
  prompts: Sequence[Tokens],
  scenes: Sequence[Scene],
  lengths: Sequence[int],
  *,
  room: int,
  too_long: Literal['refuse', 'unknown'],
  judge: str,
  remedy: str,
) -> list[Tokens]:
  """Keeps prompts that leave room for their response; refuses or drops the others.

  Args:
    prompts, scenes: a row each.
    lengths: tokens of its response.
    room: for both together.
    too_long: what becomes of the others.
    judge: in the message.
    remedy: what has so little room, and what to do, behind the numbers of the row.
  """
  kept = []
  for prompt, scene, length in zip(prompts, scenes, lengths, strict=True):
    if prompt is not None and len(prompt) + length > room:
      if too_long == 'refuse':
        raise ValueError(
          f'judge {judge}: {scene.problem.name or "a row"} has {len(prompt)} tokens of prompt and {length} of '
          f"response, {remedy}, or leave such rows without a judgement: too_long = 'unknown'."
        )
      prompt = None
    kept.append(prompt)
  return kept
