"""Floor 1. Tiny worlds: verifiable tasks whose teachers are trained here, on two cores, in minutes.

sums   a chain of additions, written out step by step;   calls   a function call as JSON, scored as ToolAlpaca is.
Both are deterministic: problem number i is the same for everybody, and a held-out problem is never in the other split.
(The third world, *bigram*, is a table of probabilities: `certify/bigram.py`.)
"""

import dataclasses
import hashlib
import json
import re
from typing import Any, Literal

import numpy as np

from opd_jax.data.tasks import Problem, Raw, Source, Task, asked
from opd_jax.data.tokenizers import CharacterTokenizer

Split = Literal['train', 'heldout']
HELD_OUT = 8  # one problem in so many is held out


def _is_held_out(text: str) -> bool:
  return hashlib.sha256(text.encode()).digest()[0] % HELD_OUT == 0


@dataclasses.dataclass(frozen=True)
class _Made(Source):
  """Problems drawn from the seed and their number; drawn again until they belong to the split."""

  world: str
  split: Split
  size: int
  seed: int

  def __len__(self) -> int:
    return self.size

  def name(self, number: int) -> str:
    return f'{self.world} ({self.split}), problem {number}'

  def __getitem__(self, number: int) -> Raw:
    for attempt in range(1000):
      raw = self.draw(np.random.RandomState([self.seed, number, attempt]))
      if _is_held_out(raw['problem']) == (self.split == 'heldout'):
        return raw
    raise ValueError(f'no problem of the split {self.split!r} in 1000 draws')

  def draw(self, rng: np.random.RandomState) -> dict[str, Any]:
    raise NotImplementedError


@dataclasses.dataclass(frozen=True)
class _Sums(_Made):
  terms: tuple[int, int]
  largest: int

  def draw(self, rng: np.random.RandomState) -> dict[str, Any]:
    numbers = rng.randint(1, self.largest + 1, rng.randint(self.terms[0], self.terms[1] + 1)).tolist()
    steps, total = [], numbers[0]
    for number in numbers[1:]:
      steps.append(f'{total}+{number}={total + number}')
      total += number
    return {'problem': '+'.join(map(str, numbers)) + '=', 'trace': ';'.join(steps) + f':{total}', 'answer': str(total)}


def _read(raw: Raw) -> Problem:
  return Problem(messages=asked(raw['problem']), answer=raw['answer'], trace=raw['trace'])


def verify_sum(problem: Problem, response: str) -> float:
  """1 where what follows the last colon is the sum.

  >>> verify_sum(Problem((), answer='12'), '3+4=7;7+5=12:12'), verify_sum(Problem((), answer='12'), '12')
  (1.0, 0.0)
  """
  _, colon, answer = response.rpartition(':')
  return float(bool(colon) and answer == problem.answer)


def sums(
  *, split: Split = 'train', size: int = 100_000, seed: int = 0, least: int = 3, most: int = 5, largest: int = 9
) -> Task:
  """Chains of additions: `7+5+9=` is answered `7+5=12;12+9=21:21`.

  Args:
    split: 'train' or 'heldout'.
    size: how many problems.
    seed: of the problems.
    least, most: terms of a chain.
    largest: of a term.
  """
  source = _Sums('sums', split, size, seed, (least, most), largest)
  return Task(name='sums', source=source, read=_read, verify=verify_sum)


def sums_tokenizer() -> CharacterTokenizer:
  """Digits and signs: 22 tokens with the special ones."""
  return CharacterTokenizer('0123456789+=;:')


FUNCTIONS = {
  'add_item': ('name', 'count'),
  'play_song': ('title', 'volume'),
  'set_alarm': ('label', 'hour'),
  'book_table': ('guest', 'seats'),
}
WORDS = ('pear', 'lamp', 'rose', 'moon', 'lake', 'wolf', 'iron', 'jazz', 'fern', 'kite')


@dataclasses.dataclass(frozen=True)
class _Calls(_Made):
  def draw(self, rng: np.random.RandomState) -> dict[str, Any]:
    names = sorted(FUNCTIONS)
    shown = [names[i] for i in rng.permutation(len(names))[:2]]
    function = shown[rng.randint(2)]
    text, count = WORDS[rng.randint(len(WORDS))], int(rng.randint(1, 30))
    arguments = dict(zip(FUNCTIONS[function], (text, count), strict=True))
    listed = ' '.join(f'{name}({",".join(FUNCTIONS[name])})' for name in shown)
    wish = function.replace('_', ' ')
    return {
      'problem': f'{listed}\n{wish}: {text}, {count}',
      'trace': f'Action: {function}\nAction Input: {json.dumps(arguments)}',
      'answer': json.dumps([{'Action': function, 'Action_Input': json.dumps(arguments)}]),
    }


def verify_calls(problem: Problem, response: str) -> float:
  """ToolAlpaca's rule, as the papers score it: the same functions, and the same merged arguments.

  The published pattern ends an input at its first closing brace, so nested objects never match; kept, to compare.

  >>> gold = Problem((), answer='[{"Action": "add", "Action_Input": "{\\\\"n\\\\": 5}"}]')
  >>> verify_calls(gold, 'Action: add' + chr(10) + 'Action Input: {"n": 5}'), verify_calls(gold, 'Action: add')
  (1.0, 0.0)
  """
  wanted = json.loads(problem.answer)
  actions = re.findall(r'Action:\s*(\w+)', response)
  given: dict[str, Any] = {}
  golden: dict[str, Any] = {}
  try:
    for text in re.findall(r'Action Input:\s*({.*?})', response, flags=re.DOTALL):
      given |= json.loads(text)
    for call in wanted:
      golden |= json.loads(call['Action_Input'])
  except (ValueError, TypeError):
    return 0.0
  return float(sorted(actions) == sorted(call['Action'] for call in wanted) and given == golden)


def calls(*, split: Split = 'train', size: int = 100_000, seed: int = 0) -> Task:
  """Function calls: two signatures and a wish; the answer is `Action:` and `Action Input:` with JSON.

  Args:
    split: 'train' or 'heldout'.
    size: how many problems.
    seed: of the problems.
  """
  return Task(name='calls', source=_Calls('calls', split, size, seed), read=_read, verify=verify_calls)


def calls_tokenizer() -> CharacterTokenizer:
  """The letters, digits and signs that calls are made of."""
  return CharacterTokenizer('abcdefghijklmnopqrstuvwxyzAI0123456789_(),:"{} \n')
