"""Floor 4. Calls of tools: the same functions with the same arguments as ToolAlpaca's golden answer."""

import json
import re
from collections import Counter
from decimal import Decimal
from typing import Any

from opd_jax.data.problems import Problem, Verdict, thread_safe
from opd_jax.evaluation.graders.answers import spoken

ACTION = re.compile(r'^[ \t]*Action:[ \t]*([\w.-]+)', flags=re.MULTILINE)
NUMBER = re.compile(r'-?(0|[1-9]\d*)(\.\d+)?([eE][+-]?\d{1,3})?')  # 01234 is an id
INPUT = re.compile(r'^[ \t]*Action Input:[ \t]*(?=\{)', flags=re.MULTILINE)


@thread_safe
def tool_calls(problem: Problem, response: str) -> Verdict:
  """1 where the response makes the golden calls: the same functions as often, and the same arguments, merged.

  Departures from the published scorer (`tiny_worlds.calls.verify_calls` keeps it): scalars are compared by value, so
  "5" is 5 and "true" is true; an input may hold objects; names may have hyphens; what the model thought before
  `</think>` does not count.

  >>> gold = Problem((), answer='[{"Action": "add", "Action_Input": "{\\\\"n\\\\": 5}"}]')
  >>> tool_calls(gold, 'Action: add' + chr(10) + 'Action Input: {"n": "5"}').outcome, tool_calls(gold, 'add 5').outcome
  ('correct', 'unparsed')
  """
  text, decoder, golden = spoken(response), json.JSONDecoder(), json.loads(problem.answer)
  actions = ACTION.findall(text)
  try:
    inputs = _merged([decoder.raw_decode(text, match.end())[0] for match in INPUT.finditer(text)])
  except (ValueError, RecursionError):
    return Verdict(0.0, 'An Action Input is no JSON object.', 'unparsed')
  if not actions:
    return Verdict(0.0, 'The response has no line with an Action.', 'unparsed')
  if Counter(actions) != Counter(call['Action'] for call in golden):
    return Verdict(0.0, f'Other tools are called for: not {", ".join(actions)}.', 'wrong')
  try:
    wanted = _merged([json.loads(call['Action_Input']) for call in golden])
  except ValueError:
    return Verdict(0.0, 'The golden call has a placeholder that no JSON can match.', 'wrong')
  if inputs != wanted:
    return Verdict(0.0, 'The arguments differ.', 'wrong')
  return Verdict(1.0, outcome='correct')


def _merged(inputs: list[dict[str, Any]]) -> dict[str, Any]:
  """The arguments of all calls, a later call's over an earlier one's."""
  return {name: _value(value) for given in inputs for name, value in given.items()}


def _value(value: Any) -> Any:
  """A value as it is compared: numbers as decimals, truth as words, text without its edges."""
  if isinstance(value, dict):
    return {name: _value(each) for name, each in value.items()}
  if isinstance(value, list):
    return [_value(each) for each in value]
  if isinstance(value, bool) or value is None:
    return 'null' if value is None else str(value).lower()
  text = str(value).strip()
  if NUMBER.fullmatch(text):
    return Decimal(text)
  return text.lower() if text.lower() in ('true', 'false', 'null') else text
