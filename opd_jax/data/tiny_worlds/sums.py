"""Floor 1. *sums*: a chain of additions, written out step by step.

A judge may be shown the first steps (`hint`), or the one chain that counts in place of several (`passage`, `document`).
"""

import dataclasses
import itertools
from typing import Any

import numpy as np

from opd_jax.data.pieces import PieceTokenizer
from opd_jax.data.problems import Problem, Task, Verdict
from opd_jax.data.tiny_worlds.made import Made, Split, read
from opd_jax.data.tokenizers import CharacterTokenizer

ALPHABET = '0123456789+=;:'


@dataclasses.dataclass(frozen=True)
class _Sums(Made):
  terms: tuple[int, int]
  largest: int
  distractors: int

  def _chain(self, rng: np.random.RandomState) -> list[int]:
    return rng.randint(1, self.largest + 1, rng.randint(self.terms[0], self.terms[1] + 1)).tolist()

  def draw(self, rng: np.random.RandomState) -> dict[str, Any]:
    numbers = self._chain(rng)
    others = [self._chain(rng) for _ in range(self.distractors)]
    chains = ['+'.join(map(str, chain)) for chain in (*others, numbers)]
    steps, total = [], numbers[0]
    for number in numbers[1:]:
      steps.append(f'{total}+{number}={total + number}')
      total += number
    return {
      'problem': ';'.join(chains) + '=',
      'demonstration': ';'.join(steps) + f':{total}',
      'answer': str(total),
      'hint': ';'.join(steps[:-1]),
      'document': ';'.join(chains),
      'passage': chains[-1],
    }


def verify_sum(problem: Problem, response: str) -> Verdict:
  """1 where what follows the last colon is the sum; the feedback is the first step that is wrong or missing, put right.

  >>> problem = Problem((), answer='12', demonstration='3+4=7;7+5=12:12')
  >>> verify_sum(problem, '3+4=7;7+5=12:12').reward, verify_sum(problem, '3+4=7;7+5=13:13')
  (1.0, Verdict(reward=0.0, feedback='7+5=12', outcome='', second=''))
  """
  steps, colon, answer = response.rpartition(':')
  if colon and answer == problem.answer:
    return Verdict(1.0)
  wanted, _, total = str(problem.demonstration or '').rpartition(':')
  given = steps.split(';')
  wrong = [
    step for step, at in itertools.zip_longest(wanted.split(';'), given) if step and step != at
  ]
  return Verdict(0.0, wrong[0] if wrong else total)


def sums(
  *,
  split: Split = 'train',
  size: int = 100_000,
  seed: int = 0,
  least: int = 3,
  most: int = 5,
  largest: int = 9,
  distractors: int = 0,
) -> Task:
  """Chains of additions: `7+5+9=` is answered `7+5=12;12+9=21:21`.

  Args:
    split: 'train' or 'heldout'.
    size: how many problems.
    seed: of the problems.
    least, most: terms of a chain.
    largest: of a term.
    distractors: chains in front of the one that is asked for, which is the last: `1+2;7+5+9=`.
  """
  source = _Sums('sums', split, size, seed, (least, most), largest, distractors)
  return Task(name='sums', source=source, read=read, verify=verify_sum)


def tokenizer() -> CharacterTokenizer:
  """Digits and signs: 22 tokens with the special ones."""
  return CharacterTokenizer(ALPHABET)


def numbers() -> PieceTokenizer:
  """The same text in other tokens, 62 with the special ones: numbers of two digits, and =10 to =19 as one token each.

  >>> tokenizer = numbers()
  >>> [tokenizer.strings()[token] for token in tokenizer.encode('7+5=12;12+9=21')]
  ['7', '+', '5', '=12', ';', '12', '+', '9', '=', '21']
  """
  pieces = [str(number) for number in range(10, 40)] + [f'={number}' for number in range(10, 20)]
  return PieceTokenizer(ALPHABET, pieces=pieces)


def signs() -> PieceTokenizer:
  """And in others, 58: a sign with the digit behind it. Its tokens begin and end inside those of `numbers`.

  >>> tokenizer = signs()
  >>> [tokenizer.strings()[token] for token in tokenizer.encode('7+5=12;12+9=21')]
  ['7', '+5', '=1', '2', ';1', '2', '+9', '=2', '1']
  """
  return PieceTokenizer(ALPHABET, pieces=[sign + digit for sign in '+=;:' for digit in '123456789'])
