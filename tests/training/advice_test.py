"""A run that does not move says once what that usually means."""

import json

import pytest

from opd_jax.training.advice import FEW, WINDOW, advise

SOUND = {'by_student': 1.0, 'truncated': 0.1, 'reward': 0.2, 'log_ratio': -0.4, 'looping': 0.0}


def told(rows):
  """All advice of a run; what is remembered goes through JSON, as in a checkpoint."""
  memory, texts = {}, []
  for row in rows:
    memory, new = advise({**SOUND, **row}, json.loads(json.dumps(memory)))
    texts += new
  return texts


@pytest.mark.parametrize(
  'row, words',
  [
    ({'reward': 0.0}, 'none of the responses'),
    ({'truncated': 1.0}, 'cut by the budget (100%)'),
    ({'log_ratio': -8.25}, '8.2 nats a token less sure'),
    ({'teacher/reverse_kl': 8.25}, '8.2 nats a token less sure'),
  ],
)
def test_what_stands_still_is_said_once_and_not_at_once(row, words):
  assert told([row] * (FEW - 1)) == []
  assert told(([row] * (FEW - 1) + [{}]) * 3) == []
  (text,) = told([row] * 3 * FEW)
  assert words in text and text.startswith('advice: ')


def test_a_reverse_kl_that_stays_is_said_and_one_that_falls_is_not():
  (text,) = told([{}] * 4 * WINDOW)
  assert 'has not fallen in 50 steps (0.4 nats a token, then 0.4)' in text
  assert told({'log_ratio': -0.4 * 0.998**step} for step in range(4 * WINDOW)) == []
  assert told([{'log_ratio': -0.001}] * 4 * WINDOW) == []  # nothing is left to learn


def test_text_of_others_says_nothing_of_the_student():
  assert told([{'by_student': 0.0, 'log_ratio': -9.0, 'truncated': 1.0}] * 3 * WINDOW) == []
