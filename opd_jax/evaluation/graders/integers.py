r"""Floor 4. Answers that are whole numbers, as in AIME: the last \boxed one, else the last one in the text."""

import re

from opd_jax.data.problems import Problem, Verdict, thread_safe
from opd_jax.evaluation.graders.answers import boxed, spoken

GROUPED = r'\d{1,3}(?:(?:,|\\,|\{,\})\d{3})+|\d+'
WHOLE = re.compile(rf'[-−+]?(?:{GROUPED})')
IN_TEXT = re.compile(rf'(?<![\w.,])[-−]?(?:{GROUPED})(?![\w]|[.,]\d)')
AROUND = re.compile(
  r'\\(?:text|mathrm|mathbf)\{([^{}]*)\}|\\[(),;!]|\\\$|[$\s]|\^?\{?\\circ\}?|\\%|%|\.$|^\w=|\.0+$'
)
DIGITS = 40  # no benchmark has longer answers, and a million digits take Python a while


@thread_safe
def integers(problem: Problem, response: str) -> Verdict:
  r"""1 where the answer is the number.

  >>> ask = lambda text: integers(Problem((), answer='042'), text).outcome
  >>> ask(r'so \boxed{42}'), ask('The answer is 42.'), ask(r'\boxed{41}, not 42'), ask('no idea')
  ('correct', 'correct', 'wrong', 'unparsed')
  """
  text = spoken(response)
  inside = boxed(text)
  if inside is None:
    found = IN_TEXT.findall(text)
    value = _value(found[-1]) if found else None
  else:
    value = _value(AROUND.sub(lambda match: match[1] or '', inside.strip()))
  wanted = _value(problem.answer)
  if wanted is None:
    raise ValueError(
      f'integers: the answer of {problem.name or "a problem"}, {problem.answer[:40]!r}, is no whole number. '
      'Grade such problems with maths.'
    )
  if value is None:
    return Verdict(0.0, 'The response holds no whole number as its answer.', 'unparsed')
  if value == wanted:
    return Verdict(1.0, outcome='correct')
  return Verdict(0.0, f'The answer is not {value}.', 'wrong')


def _value(text: str) -> int | None:
  """A whole number, thousands grouped or not."""
  if not WHOLE.fullmatch(text) or len(text) > DIGITS:
    return None
  return int(re.sub(r'[,\\{}]', '', text).replace('−', '-'))
