"""Floor 1. *calls*: a function call as JSON, scored as ToolAlpaca is.

A judge may be shown the signature that is meant: behind the question (`hint`), or in place of all that are offered
(`passage`, `document`).
"""

import dataclasses
import json
import re
from typing import Any

import numpy as np

from opd_jax.data.problems import Problem, Task, Verdict
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
  offered: int

  def draw(self, rng: np.random.RandomState) -> dict[str, Any]:
    names = sorted(FUNCTIONS)
    offered = [names[i] for i in rng.permutation(len(names))[: self.offered]]
    function = offered[rng.randint(self.offered)]
    text, count = WORDS[rng.randint(len(WORDS))], int(rng.randint(1, 30))
    arguments = dict(zip(FUNCTIONS[function], (text, count), strict=True))
    signatures = {name: f'{name}({",".join(FUNCTIONS[name])})' for name in offered}
    listed = ' '.join(signatures.values())
    wish = function.replace('_', ' ')
    return {
      'problem': f'{listed}\n{wish}: {text}, {count}',
      'demonstration': f'Action: {function}\nAction Input: {json.dumps(arguments)}',
      'answer': json.dumps([{'Action': function, 'Action_Input': json.dumps(arguments)}]),
      'hint': signatures[function],
      'document': listed,
      'passage': signatures[function],
    }


def verify_calls(problem: Problem, response: str) -> Verdict:
  """ToolAlpaca's rule, as the papers score it: the same functions, and the same merged arguments.

  The published pattern ends an input at its first closing brace, so nested objects never match. We keep it, so that
  scores compare with published ones. The feedback says what was expected.

  >>> gold = Problem((), answer='[{"Action": "add", "Action_Input": "{\\\\"n\\\\": 5}"}]')
  >>> verify_calls(gold, 'Action: add' + chr(10) + 'Action Input: {"n": 5}').reward, verify_calls(gold, 'Action: ad')
  (1.0, Verdict(reward=0.0, feedback='expected the function add', outcome='', second=''))
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
    return Verdict(0.0, 'expected arguments in braces')
  golden_actions = sorted(call['Action'] for call in golden_calls)
  if sorted(actions) != golden_actions:
    return Verdict(0.0, f'expected the function {", ".join(golden_actions)}')
  if given != golden:
    return Verdict(0.0, f'expected the arguments {json.dumps(golden)}')
  return Verdict(1.0)


def calls(*, split: Split = 'train', size: int = 100_000, seed: int = 0, offered: int = 2) -> Task:
  """Function calls: some signatures and a wish; the answer is `Action:` and `Action Input:` with JSON.

  Args:
    split: 'train' or 'heldout'.
    size: how many problems.
    seed: of the problems.
    offered: signatures of a question, up to four; all but one distract.
  """
  if not 1 <= offered <= len(FUNCTIONS):
    raise ValueError(f'calls: there are {len(FUNCTIONS)} signatures to offer, got {offered}.')
  source = _Calls('calls', split, size, seed, offered)
  return Task(name='calls', source=source, read=read, verify=verify_calls)


def tokenizer() -> CharacterTokenizer:
  """The letters, digits and signs that calls are made of."""
  return CharacterTokenizer('abcdefghijklmnopqrstuvwxyzAI0123456789_(),:"{} \n')
