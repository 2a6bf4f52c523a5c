"""ESR against its formula: which tokens count, where the writer stops, and the budget of the controls."""

import jax
import numpy as np
import pytest
from evidence_worlds import (
  MASK,
  REFERENCE_LOGITS,
  RESPONSE,
  STUDENT_LOGITS,
  TEACHER_LOGITS,
  by_sequence,
  from_logits,
  ours,
  paper,
  same,
  stop,
  weigh,
)

from opd_jax.methods.esr import esr

NUMBER = np.cumsum(MASK, axis=1)
KEPT = {
  'stop': MASK & (NUMBER <= 3),
  'first': MASK & (NUMBER <= 3),
  'last': MASK & (NUMBER[:, -1:] - NUMBER < 3),
}


@pytest.mark.parametrize('where', KEPT)
def test_it_is_the_published_formula(where):
  formula = lambda of: by_sequence(KEPT[where], -stop(of.q - of.p) * of.p)
  same(ours(esr(tokens=3, where=where)), paper(formula))


def test_only_the_published_one_stops_the_writer():
  assert esr().rollout.stop_after == 100
  assert all(esr(where=where).rollout.stop_after is None for where in ('first', 'last', 'random'))


@pytest.mark.parametrize('where', ['stop', 'first', 'last', 'random'])
def test_where_every_token_is_among_so_many_it_is_opd_per_sequence(where):
  whole = lambda of: by_sequence(MASK, -stop(of.q - of.p) * of.p)
  same(ours(esr(tokens=6, where=where)), paper(whole))


def test_the_random_control_counts_as_many_tokens_of_every_response():
  method = esr(tokens=2, where='random')
  logits = STUDENT_LOGITS, TEACHER_LOGITS, REFERENCE_LOGITS
  evidence, _ = from_logits(*logits, RESPONSE, method)
  program, found = weigh(method), set()
  for seed in range(6):
    coefficient = program(evidence._replace(key=jax.random.key(seed)))[0].coefficient
    chosen = np.asarray(coefficient) != 0
    np.testing.assert_array_equal(chosen.sum(axis=1), np.minimum(MASK.sum(axis=1), 2))
    found.add(chosen.tobytes())
  assert len(found) > 3


@pytest.mark.parametrize('settings', [{'tokens': 0}, {'where': 'middle'}])
def test_numbers_without_meaning_are_refused(settings):
  with pytest.raises(ValueError, match='tokens must be at least 1 and where one of stop'):
    esr(**settings)
