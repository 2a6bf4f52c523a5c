"""Floor 5. What a run that does not move usually means, and what to try: said once, from the metrics of a step.

What is remembered are numbers that JSON holds, beside those of the alarms: a resumed run does not say it again.
"""

import math
from collections.abc import Mapping
from typing import Any

WINDOW = 50  # steps that are compared with the same number before
FEW = 10  # batches in a row
FALLEN = 0.03  # by what fraction a reverse KL that moves falls over a window
SMALL = 0.02  # nats: nothing is left to learn below
APART = 3.0  # nats a token
PREFIX = 'advice/'

FLAT = """\
advice: the reverse KL to the teacher has not fallen in {window} steps ({before:.3g} nats a token, then {after:.3g}). \
Usually the rate is too small for so few steps (try 3 times as much), the signal of one sampled token is too noisy \
(more prompts or samples a batch, or a method that reads the whole distribution: gkd), or the student writes what \
this teacher cannot correct (warm it up with sft or seqkd first)."""
UNREWARDED = """\
advice: none of the responses of the last {few} batches got a reward. OPD learns without one, but accuracy will stay \
zero. Read a few responses in samples.jsonl: is the answer there, and the verifier does not see it? Are responses cut \
by the budget (truncated {truncated:.0%})? Is the task too hard for this student (warm it up with sft)?"""
DISAGREED = """\
advice: teacher and student disagree utterly: on what the student writes the teacher is {gap:.1f} nats a token less \
sure than it. Usually the two read different templates or tokenizers (compare `the student reads` and `teacher reads` \
above), the teacher is not the model that was meant, or the student is random: warm it up with sft or seqkd first."""
CUT = """\
advice: nearly all responses of the last {few} batches were cut by the budget ({truncated:.0%}). The student never \
ends: the budget is too small for this task, no stop token is known (the tokenizer's, or Decoding.stop_tokens), or it \
loops (looping {looping:.0%}, repeats {repeats:.0%}). Raise BUDGET, or teach it to end with a warm-up of sft."""


def advise(
  row: Mapping[str, Any], memory: Mapping[str, float]
) -> tuple[dict[str, float], list[str]]:
  """What is remembered after a step, and what is to be said now."""
  after, texts = dict(memory), []

  def once(name: str, text: str, **facts: Any) -> None:
    if not after.get(f'{PREFIX}{name}_said'):
      after[f'{PREFIX}{name}_said'] = 1.0
      texts.append(text.format(window=WINDOW, few=FEW, **facts))

  def in_a_row(name: str, is_so: bool) -> bool:
    after[PREFIX + name] = after.get(PREFIX + name, 0.0) + 1.0 if is_so else 0.0
    return after[PREFIX + name] >= FEW

  cut = row.get('truncated', 0.0)
  if in_a_row('unrewarded', row.get('reward') == 0.0):
    once('unrewarded', UNREWARDED, truncated=cut)
  if in_a_row('cut', row.get('by_student', 0.0) > 0 and cut >= 0.95):
    once('cut', CUT, truncated=cut, **{name: row.get(name, 0.0) for name in ('looping', 'repeats')})
  gap = reverse_kl(row)
  if in_a_row('disagreed', gap is not None and gap > APART):
    once('disagreed', DISAGREED, gap=gap)
  if gap is not None and (means := _windows(after, gap)) is not None:
    before, now = means
    if now > SMALL and now > (1 - FALLEN) * before:
      once('flat', FLAT, before=before, after=now)
  return after, texts


def reverse_kl(row: Mapping[str, Any]) -> float | None:
  """The exact one where the pass saw it, else what the student's own text says of it; None where nothing does."""
  if row.get('by_student', 0.0) < 0.5:
    return None
  value = row.get('teacher/reverse_kl', -row.get('log_ratio', math.nan))
  return value if math.isfinite(value) else None


def _windows(memory: dict[str, float], value: float) -> tuple[float, float] | None:
  """The means of the last window and of the one before it, where one has just ended."""
  name = f'{PREFIX}kl_'
  count, total = memory.get(f'{name}count', 0.0) + 1, memory.get(f'{name}sum', 0.0) + value
  memory[f'{name}count'], memory[f'{name}sum'] = count, total
  if count < WINDOW:
    return None
  before, now = memory.get(f'{name}before'), total / count
  memory |= {f'{name}count': 0.0, f'{name}sum': 0.0, f'{name}before': now}
  return None if before is None else (before, now)
