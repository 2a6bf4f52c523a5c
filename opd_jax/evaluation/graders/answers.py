"""Floor 4. Where the answer stands in a response."""

import re

THINKING = '</think>'
BRACES = re.compile(r'\\(?:boxed|fbox)\s*\{|\\[{}]|[{}]')


def spoken(text: str) -> str:
  """Without what the model thought before it answered; nothing where it was cut off while it thought."""
  answer = text.rpartition(THINKING)[2]
  return '' if '<think>' in answer else answer


def boxed(text: str) -> str | None:
  r"""What the last whole \boxed{…} holds, braces matched; None where there is none. Of nested ones the innermost.

  >>> boxed(r'\boxed{1} or \boxed{\frac{1}{2}}'), boxed(r'\boxed{1'), boxed(r'x = \fbox{3}')
  ('\\frac{1}{2}', None, '3')
  """
  opened: list[int] = []  # where the inside of each open brace begins; -1 of those that are no box
  begin, inside = -1, None
  for match in BRACES.finditer(text):
    if match[0] == '}':
      start = opened.pop() if opened else -1
      if start > begin:
        begin, inside = start, text[start : match.start()]
    elif match[0][-1] == '{' and match[0] != r'\{':
      opened.append(match.end() if len(match[0]) > 1 else -1)
  return inside
