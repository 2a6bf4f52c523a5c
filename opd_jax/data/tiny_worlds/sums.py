"""Floor 1. *sums*: a chain of additions, written out step by step."""

import dataclasses
from typing import Any

import numpy as np

from opd_jax.data.problems import Problem, Task
from opd_jax.data.tiny_worlds.made import Made, Split, read
from opd_jax.data.tokenizers import CharacterTokenizer


@dataclasses.dataclass(frozen=True)
class _Sums(Made):
  terms: tuple[int, int]
  largest: int

  def draw(self, rng: np.random.RandomState) -> dict[str, Any]:
    numbers = rng.randint(
      1, self.largest + 1, rng.randint(self.terms[0], self.terms[1] + 1)
    ).tolist()
    steps, total = [], numbers[0]
    for number in numbers[1:]:
      steps.append(f'{total}+{number}={total + number}')
      total += number
    return {
      'problem': '+'.join(map(str, numbers)) + '=',
      'demonstration': ';'.join(steps) + f':{total}',
      'answer': str(total),
    }


def verify_sum(problem: Problem, response: str) -> float:
  """1 where what follows the last colon is the sum.

  >>> verify_sum(Problem((), answer='12'), '3+4=7;7+5=12:12'), verify_sum(Problem((), answer='12'), '12')
  (1.0, 0.0)
  """
  _, colon, answer = response.rpartition(':')
  return float(bool(colon) and answer == problem.answer)


def sums(
  *,
  split: Split = 'train',
  size: int = 100_000,
  seed: int = 0,
  least: int = 3,
  most: int = 5,
  largest: int = 9,
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
  return Task(name='sums', source=source, read=read, verify=verify_sum)


def tokenizer() -> CharacterTokenizer:
  """Digits and signs: 22 tokens with the special ones."""
  return CharacterTokenizer('0123456789+=;:')
