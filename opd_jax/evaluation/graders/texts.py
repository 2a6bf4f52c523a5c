r"""Floor 4. Verifiers of plain answers: equal text, the last number, a letter, a pattern, JSON fields, a code block.

One of your own is a function of a problem and a response that returns a number: `verify = @my_module.my_verifier`.
"""

import json
import re
from collections.abc import Sequence
from decimal import Decimal
from typing import Any

from opd_jax.data.problems import Problem, Verdict, Verifier, thread_safe
from opd_jax.evaluation.graders.answers import boxed, spoken

NUMBER = re.compile(r'(?<![\w.])[-−+]?(?:\d{1,3}(?:,\d{3})+|\d+)(?:\.\d+)?(?![\w]|\.\d)')
LETTER = re.compile(r'(?:answer|option|choice)\s*(?:is|:)?\s*\**\(?([A-Z])\b', flags=re.IGNORECASE)
ALONE = re.compile(r'^\W*([A-Z])\W*$|\(([A-Z])\)', flags=re.MULTILINE)
BLOCK = re.compile(r'^```[^\n`]*\n(.*?)^```', flags=re.MULTILINE | re.DOTALL)
LONGEST = 20_000  # characters of a response that are read, from its end


@thread_safe
def exact(problem: Problem, response: str) -> Verdict:
  r"""1 where the response, or what its last \boxed holds, is the answer; space around and between words does not count.

  >>> ask = lambda text: exact(Problem((), answer='New York'), text).outcome
  >>> ask(' New  York '), ask(r'It is \boxed{New York}.'), ask('York')
  ('correct', 'correct', 'wrong')
  """
  text = spoken(response)
  inside = boxed(text)
  return _compared(_words(text if inside is None else inside), _words(_wanted(problem)))


@thread_safe
def last_number(problem: Problem, response: str) -> Verdict:
  """1 where the last number of the response is the answer, by value: 1,200.0 is 1200.

  >>> ask = lambda text: last_number(Problem((), answer='1200'), text).outcome
  >>> ask('12 x 100 = 1,200.0'), ask('1200 or 1300'), ask('many')
  ('correct', 'wrong', 'unparsed')
  """
  numbers = NUMBER.findall(spoken(response)[-LONGEST:])
  wanted = NUMBER.fullmatch(problem.answer.strip())
  if wanted is None:
    raise ValueError(
      f'last_number: the answer of {problem.name or "a problem"}, {problem.answer[:40]!r}, is no number. Use exact.'
    )
  if not numbers:
    return Verdict(0.0, 'The response holds no number.', 'unparsed')
  return _compared(_number(numbers[-1]), _number(wanted[0]))


@thread_safe
def choice(problem: Problem, response: str) -> Verdict:
  r"""1 where the letter that the response chooses is the answer: boxed, named (`the answer is B`), or alone on a line.

  >>> ask = lambda text: choice(Problem((), answer='B'), text).outcome
  >>> ask(r'\boxed{B}'), ask('A is tempting. The answer is (B).'), ask('(C)'), ask('I do not know')
  ('correct', 'correct', 'wrong', 'unparsed')
  """
  text = spoken(response)[-LONGEST:]
  inside = boxed(text)
  letters = re.findall('[A-Za-z]', inside or '')
  if inside is not None and len(letters) == 1:
    found = letters
  else:
    found = LETTER.findall(text) or [one or other for one, other in ALONE.findall(text)]
  if not found:
    return Verdict(0.0, 'The response chooses no letter.', 'unparsed')
  return _compared(found[-1].upper(), problem.answer.strip().strip('()').upper())


def pattern(expression: str) -> Verifier:
  r"""A verifier that compares the first group of the last match of a regular expression with the answer.

  >>> verify = pattern(r'#### *(\S+)')
  >>> verify(Problem((), answer='7'), 'so\n#### 7').outcome, verify(Problem((), answer='7'), '7').outcome
  ('correct', 'unparsed')

  Args:
    expression: with one group.
  """
  compiled = re.compile(expression, flags=re.MULTILINE)
  if compiled.groups != 1:
    raise ValueError(
      f'pattern: {expression!r} has {compiled.groups} groups, and the answer is one. Group it with parentheses, '
      'others with (?:…).'
    )

  @thread_safe
  def verify(problem: Problem, response: str) -> Verdict:
    found = compiled.findall(spoken(response)[-LONGEST:])
    if not found:
      return Verdict(0.0, f'The response has nothing like {expression}.', 'unparsed')
    return _compared(_words(found[-1]), _words(problem.answer))

  return verify


def json_fields(names: Sequence[str] = ()) -> Verifier:
  """A verifier that compares fields of the last JSON object in the response with those of the answer, itself JSON.

  >>> verify, problem = json_fields(), Problem((), answer='{"city": "Rome", "n": 3}')
  >>> verify(problem, 'Here: {"n": 3.0, "city": "Rome", "why": "x"}').outcome, verify(problem, '{"n": 3}').outcome
  ('correct', 'wrong')

  Args:
    names: of the fields that count; empty: all of the answer's.
  """

  @thread_safe
  def verify(problem: Problem, response: str) -> Verdict:
    try:
      wanted = json.loads(problem.answer)
    except ValueError:
      wanted = None
    if not isinstance(wanted, dict) or (missing := [name for name in names if name not in wanted]):
      raise ValueError(
        f'json_fields: the answer of {problem.name or "a problem"} is no JSON object with '
        f'{", ".join(missing) if isinstance(wanted, dict) else "fields"}. Put one into its column.'
      )
    given = _last_object(spoken(response)[-LONGEST:])
    if given is None:
      return Verdict(0.0, 'The response holds no JSON object.', 'unparsed')
    differing = [
      name for name in names or wanted if name not in given or given[name] != wanted[name]
    ]
    if differing:
      return Verdict(0.0, f'These fields differ: {", ".join(differing)}.', 'wrong')
    return Verdict(1.0, outcome='correct')

  return verify


@thread_safe
def code_block(problem: Problem, response: str) -> Verdict:
  """1 where the last fenced block of code is the answer, line by line without trailing space. Nothing is executed.

  >>> fence = '`' * 3
  >>> code_block(Problem((), answer='x = 1'), f'{fence}python{chr(10)}x = 1  {chr(10)}{fence}').outcome
  'correct'
  """
  blocks = BLOCK.findall(spoken(response)[-LONGEST:])
  if not blocks:
    return Verdict(0.0, 'The response has no fenced block of code.', 'unparsed')
  lines = lambda text: [line.rstrip() for line in text.strip('\n').splitlines()]
  return _compared(lines(blocks[-1]), lines(_wanted(problem)))


def _wanted(problem: Problem) -> str:
  """The answer of a problem; where there is none, silence would be correct."""
  if not problem.answer.strip():
    raise ValueError(
      f'{problem.name or "a problem"} has no answer, so silence would be rewarded. Bind the column that holds it.'
    )
  return problem.answer


def _compared(given: Any, wanted: Any) -> Verdict:
  if given == wanted:
    return Verdict(1.0, outcome='correct')
  shown = str(given)
  return Verdict(0.0, f'The answer is not {shown[:80]}.', 'wrong')


def _words(text: str) -> str:
  return ' '.join(text.split())


def _number(text: str) -> Decimal:
  return Decimal(text.replace(',', '').replace('−', '-'))


def _last_object(text: str) -> dict[str, Any] | None:
  """The last JSON object that is whole and stands in no other."""
  decoder, at, last = json.JSONDecoder(), 0, None
  tries = 0
  while (begin := text.find('{', at)) >= 0 and tries < 200:
    tries += 1
    try:
      value, at = decoder.raw_decode(text, begin)
      last = value
    except (ValueError, RecursionError):
      at = begin + 1
  return last
