"""Gates: the rule of the paper beside ours, what a gate remembers, and numbers without meaning."""

import dataclasses
import json

import numpy as np
import pytest

from opd_jax import judges
from opd_jax.judges.gates import Improved, RewardRose

SMALL = RewardRose(every=5, apart=10, margin=0.05, tail=3.0, window=4)


def rows(steps: int, seed: int = 0) -> list[dict]:
  """Rewards that rise and fall, lengths with a tail now and then."""
  rng = np.random.default_rng(seed)
  length = rng.uniform(20, 40, steps)
  return [
    {
      'loss': 0.0,
      'reward': float(0.01 * step + 0.1 * rng.standard_normal()),
      'length': float(length[step]),
      'length_max': float(length[step] * rng.uniform(1.5, 3.4)),
    }
    for step in range(steps)
  ]


def printed_rule(gate: RewardRose, shown: list[dict]) -> list[int]:
  """The steps of its renewals, as the paper writes the rule, over the whole history at once."""
  reward, mean, longest = (
    np.array([row[name] for row in shown]) for name in ('reward', 'length', 'length_max')
  )
  last, reference, found = 0, reward[: gate.window].mean(), []
  for t in range(gate.every, len(shown) + 1, gate.every):
    window = slice(t - gate.window, t)
    isolated = t - last >= gate.apart
    rose = gate.margin is None or reward[window].mean() > reference + gate.margin
    calm = gate.tail is None or longest[window].max() / mean[window].mean() <= gate.tail
    if t >= gate.window and isolated and rose and calm:
      last, reference = t, reward[window].mean()
      found.append(t)
  return found


def opened(gate, shown: list[dict]) -> list[int]:
  """The same by ours, row by row, with what it remembers going through JSON each time."""
  memory, found = {}, []
  for step, row in enumerate(shown, 1):
    memory, opens = gate.after(json.loads(json.dumps(memory)), row)
    found += [step] * opens
  return found


@pytest.mark.parametrize('changes', [{}, {'apart': 0}, {'margin': None}, {'tail': None}], ids=str)
def test_it_opens_where_the_printed_rule_does(changes):
  gate, shown = dataclasses.replace(SMALL, **changes), rows(200)
  want = printed_rule(gate, shown)
  assert opened(gate, shown) == want and 2 < len(want) < 40


def test_each_condition_keeps_it_shut():
  calm = [
    {'loss': 0.0, 'reward': float(t >= 20), 'length': 9.0, 'length_max': 18.0} for t in range(60)
  ]
  assert opened(SMALL, calm) == [
    25
  ]  # the mean of four rewards passes 0.05; later it never rises again
  long = [{**row, 'length_max': 28.0} for row in calm]
  assert opened(SMALL, long) == [] and opened(dataclasses.replace(SMALL, tail=3.2), long) == [25]
  assert opened(dataclasses.replace(SMALL, apart=40), calm) == [40]


def test_steps_without_a_verdict_and_evaluations_say_nothing():
  shown = rows(60)
  unverified = {name: value for name, value in shown[0].items() if name != 'reward'}
  memory, _ = SMALL.after({}, shown[0])
  after, opens = SMALL.after(memory, unverified)
  assert after == {**memory, 'steps': 2} and not opens
  assert SMALL.after(memory, {'eval/sums/avg@1': 0.5}).memory == memory


def test_an_evaluation_that_improved_opens_its_gate_and_is_the_next_reference():
  gate = Improved(metric='eval/sums/avg@1', margin=0.1)
  read = lambda gate, values: opened(gate, [{'eval/sums/avg@1': value} for value in values])
  assert read(gate, [0.2, 0.25, 0.35, 0.4, 0.2, 0.5]) == [3, 6]
  assert read(dataclasses.replace(gate, apart=4), [0.2, 0.4, 0.4, 0.4, 0.8]) == [4]
  assert gate.after({}, {'loss': 1.0}) == ({}, False)


def test_numbers_without_meaning_are_refused():
  for changes, message in (
    ({'tail': 0.9}, 'tail must be at least 1'),
    ({'tail': float('nan')}, 'tail must be at least 1'),
    ({'margin': -0.1}, 'margin must be finite'),
    ({'margin': float('inf')}, 'margin must be finite'),
    ({'window': 0}, 'every and window must be at least 1'),
    ({'apart': -1}, 'apart not negative'),
  ):
    with pytest.raises(ValueError, match=message):
      dataclasses.replace(SMALL, **changes)
  with pytest.raises(ValueError, match='a metric of an evaluation'):
    Improved(metric='reward')
  with pytest.raises(ValueError, match='every must be 1 and rate above 0'):
    judges.gated(by=SMALL, rate=0.0)
  with pytest.raises(ValueError, match='every must be 1'):
    dataclasses.replace(judges.gated(by=SMALL), every=5)
  assert not judges.gated(by=SMALL).is_live
