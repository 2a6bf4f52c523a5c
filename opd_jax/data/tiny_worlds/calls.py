"""Floor 1. *calls*: a function call as JSON, scored as ToolAlpaca is."""

import dataclasses
import json
import re
from typing import Any

import numpy as np

from opd_jax.data.problems import Problem, Task
from opd_jax.data.tiny_worlds.made import Made, Split, read
from opd_jax.data.tokenizers import CharacterTokenizer

FUNCTIONS = {
  'add_item': ('name', 'count'),
  'play_song': ('title', 'volume'),
  'set_alarm': ('label', 'hour'),
  'book_table': ('guest', 'seats'),
}
WORDS = ('pear', 'lamp', 'rose', 'moon', 'lake', 'wolf', 'iron', 'jazz', 'fern', 'kite')


@dataclasses.dataclass(frozen=True)
class _Calls(Made):
  def draw(self, rng: np.random.RandomState) -> dict[str, Any]:
    names = sorted(FUNCTIONS)
    offered = [names[i] for i in rng.permutation(len(names))[:2]]
    function = offered[rng.randint(2)]
    text, count = WORDS[rng.randint(len(WORDS))], int(rng.randint(1, 30))
    arguments = dict(zip(FUNCTIONS[function], (text, count), strict=True))
    listed = ' '.join(f'{name}({",".join(FUNCTIONS[name])})' for name in offered)
    wish = function.replace('_', ' ')
    return {
      'problem': f'{listed}\n{wish}: {text}, {count}',
      'demonstration': f'Action: {function}\nAction Input: {json.dumps(arguments)}',
      'answer': json.dumps([{'Action': function, 'Action_Input': json.dumps(arguments)}]),
    }


def verify_calls(problem: Problem, response: str) -> float:
  """ToolAlpaca's rule, as the papers score it: the same functions, and the same merged arguments.

  The published pattern ends an input at its first closing brace, so nested objects never match. We keep it, so that
  scores compare with published ones.

  >>> gold = Problem((), answer='[{"Action": "add", "Action_Input": "{\\\\"n\\\\": 5}"}]')
  >>> verify_calls(gold, 'Action: add' + chr(10) + 'Action Input: {"n": 5}'), verify_calls(gold, 'Action: add')
  (1.0, 0.0)
  """
  golden_calls = json.loads(problem.answer)
  actions = re.findall(r'Action:\s*(\w+)', response)
  given: dict[str, Any] = {}
  golden: dict[str, Any] = {}
  try:
    for text in re.findall(r'Action Input:\s*({.*?})', response, flags=re.DOTALL):
      given |= json.loads(text)
    for call in golden_calls:
      golden |= json.loads(call['Action_Input'])
  except (ValueError, TypeError):
    return 0.0
  golden_actions = sorted(call['Action'] for call in golden_calls)
  return float(sorted(actions) == golden_actions and given == golden)


def calls(*, split: Split = 'train', size: int = 100_000, seed: int = 0) -> Task:
  """Function calls: two signatures and a wish; the answer is `Action:` and `Action Input:` with JSON.

  Args:
    split: 'train' or 'heldout'.
    size: how many problems.
    seed: of the problems.
  """
  return Task(
    name='calls', source=_Calls('calls', split, size, seed), read=read, verify=verify_calls
  )


def tokenizer() -> CharacterTokenizer:
  """The letters, digits and signs that calls are made of."""
  return CharacterTokenizer('abcdefghijklmnopqrstuvwxyzAI0123456789_(),:"{} \n')
