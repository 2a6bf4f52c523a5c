"""Speculative sampling: the text is the target's whatever the draft proposes, and every count says what it means."""

import dataclasses
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import FAMILIES
from scipy import stats

from opd_jax.data.prompts import left_padded
from opd_jax.inference import sampler, speculative
from opd_jax.inference.decode_programs import Recording
from opd_jax.inference.decoding import Decoding, Greedy, RepetitionStop, Temperature, TopK, TopP
from opd_jax.inference.guided import Blend
from opd_jax.inference.sampler import Model, Sampling
from opd_jax.inference.speculative_programs import residual
from opd_jax.models import presets, transformer
from opd_jax.sharding import mesh_layout
from opd_jax.types import ENDINGS

V, R = 5, 3
PROMPT = [1, 3]
SHAPE = {'vocab_size': V, 'width': 32, 'mlp_width': 32, 'num_heads': 2, 'num_kv_heads': 1}
COUNT = 4095  # rows; an odd number of slots is never halved, so one program does
CASES = {  # rules and proposals
  'plain, 1': ((), 1),
  'plain, 3': ((), 3),
  'truncated': ((Temperature(1.3), TopK(3)), 2),
  'nucleus': ((Temperature(0.8), TopP(0.8)), 2),
}


def model_of(seed, **changes):
  config = dataclasses.replace(presets.tiny(**SHAPE), **changes)
  return Model(config, LAYOUT, transformer.init(config, LAYOUT, jax.random.key(seed)))


LAYOUT = mesh_layout(devices=(jax.devices()[0],))
TARGET, DRAFT = model_of(1), model_of(2, num_layers=1)


def many(count, prompt=PROMPT):
  return left_padded([prompt] * count, width=len(prompt), pad=0)


def generate(prompts, *, target=TARGET, draft=DRAFT, proposals=2, seed=0, budgets=None, **settings):
  sampling = Sampling(**{'budget': R, 'slots': COUNT, **settings})
  key = jax.random.key(seed)
  return speculative.generate(
    target, draft, prompts, key, sampling=sampling, proposals=proposals, budgets=budgets
  )


def logs_of(model, rows, rules=()):
  """log-probabilities [rows, columns, V] of what follows every token, after the rules; in float64 at the end."""
  hidden = transformer.bind(*model)(jnp.asarray(rows, jnp.int32))
  logits = transformer.logits_of(hidden, transformer.bind(*model).head())
  scores = Decoding(rules=rules).distribution([logits.reshape(-1, V)])
  scores = np.asarray(scores, np.float64).reshape(logits.shape)
  return scores - np.log(np.exp(scores).sum(-1, keepdims=True))


def law(model, rules):
  """The probability of every text of R tokens."""
  texts = np.array([*itertools.product(range(V), repeat=R)])
  logs = logs_of(model, [PROMPT + text.tolist() for text in texts], rules)[:, len(PROMPT) - 1 : -1]
  return np.exp(np.take_along_axis(logs, texts[..., None], -1).sum((1, 2)))


def surprise(counts, probs):
  """The p value of Pearson's test; texts that are expected fewer than five times are taken together."""
  expected = probs * counts.sum()
  often = expected >= 5
  if (counts[probs == 0]).any():
    return 0.0
  seen, wanted = counts[often], expected[often]
  if expected[~often].sum() >= 5:
    seen, wanted = np.append(seen, counts[~often].sum()), np.append(wanted, expected[~often].sum())
  statistic = ((seen - wanted) ** 2 / wanted).sum()
  return stats.chi2.sf(statistic, len(seen) - 1)


@pytest.mark.parametrize('rules, proposals', CASES.values(), ids=CASES)
def test_the_text_has_the_targets_distribution(rules, proposals):
  """A right sampler fails at one seed in a million; the draft's own law is refused at the same counts."""
  decoding = Decoding(rules=rules)
  rollout = generate(many(COUNT), proposals=proposals, decoding=decoding).rollout
  texts = rollout.response @ V ** np.arange(R)[::-1]
  counts = np.bincount(texts, minlength=V**R)
  assert surprise(counts, law(TARGET, rules)) > 1e-6
  assert surprise(counts, law(DRAFT, rules)) < 1e-12


def test_acceptance_is_the_mass_that_both_share_and_follows_from_the_text():
  """Σ_v min(p, q) at the first token, and min(1, p / q) where that token is given; within four deviations."""
  told = generate(many(COUNT), budgets=[1] * COUNT)
  log_p, log_q = (logs_of(model, [PROMPT])[0, -1] for model in (DRAFT, TARGET))
  shared = np.exp(np.minimum(log_p, log_q)).sum()
  np.testing.assert_array_equal(told.judged, 1)
  np.testing.assert_array_equal(told.passes, 1)
  assert 0.2 < shared < 0.95
  assert abs(told.acceptance - shared) < 4 * np.sqrt(shared * (1 - shared) / COUNT)
  assert told.block_efficiency == 1.0
  for token in range(V):
    written = told.rollout.response[:, 0] == token
    rate, want = told.accepted[written].mean(), min(1.0, np.exp(log_p - log_q)[token])
    assert abs(rate - want) <= 4 * np.sqrt(want * (1 - want) / written.sum()) + 1e-6


def test_residual_is_what_the_target_has_beyond_the_draft():
  of_target, of_draft = jnp.log(jnp.array([[[0.5, 0.3, 0.2]], [[0.2, 0.2, 0.6]]]))
  got = np.exp(residual(of_target, of_draft))
  np.testing.assert_allclose(got, [[0.3, 0.1, 0.0]], atol=1e-6)
  equal = residual(of_target, of_target)
  np.testing.assert_allclose(equal, of_target, atol=1e-7)


RNG = np.random.RandomState(0)
ROWS = [RNG.randint(0, V, length).tolist() for length in (3, 1, 9, 20, 5, 5, 2)]
PROMPTS = left_padded(ROWS, width=20, pad=0)
STOPS = Decoding(stop_tokens=(4,))


def test_with_greedy_it_is_the_text_of_the_plain_sampler_and_ends_as_it_does():
  """Stops, budgets of rows, the position table and loops, all of them in one batch."""
  loops = RepetitionStop(periods=(1, 2, 3), times=4)
  decoding = Decoding(rules=(Greedy(),), stop_tokens=(4,), repetition=loops)
  target = model_of(8, max_positions=22)
  settings = Sampling(budget=14, decoding=decoding, slots=3)
  budgets = [14, 14, 3, 14, 0, 14, 14]
  key = jax.random.key(0)
  want = sampler.generate(target, PROMPTS, key, sampling=settings, budgets=budgets)
  for proposals in (1, 5):
    got = speculative.generate(
      target, DRAFT, PROMPTS, key, sampling=settings, proposals=proposals, budgets=budgets
    ).rollout
    np.testing.assert_array_equal(got.response, want.response)
    np.testing.assert_array_equal(got.mask, want.mask)
    np.testing.assert_array_equal(got.ended_by, want.ended_by)
    np.testing.assert_allclose(got.logp, want.logp, atol=1e-5)
  assert {ENDINGS[code] for code in want.ended_by} == {'budget', 'context', 'repetition', 'stop'}


@pytest.mark.parametrize(
  'settings',
  [{'slots': 1}, {'slots': 3, 'segment': 1, 'chunk': 4}],
  ids=str,
)
def test_slots_segments_and_chunks_do_not_change_the_text(settings):
  known = {'budget': 24, 'decoding': STOPS}
  want, got = generate(PROMPTS, **known), generate(PROMPTS, **{**known, **settings})
  np.testing.assert_array_equal(got.rollout.response, want.rollout.response)
  np.testing.assert_array_equal(got.rollout.ended_by, want.rollout.ended_by)
  for one, other in zip(got[1:], want[1:], strict=True):
    np.testing.assert_array_equal(one, other)


def test_a_draft_that_is_the_target_is_always_believed():
  """Then a pass writes all proposals and one token more."""
  told = generate(PROMPTS, draft=TARGET, proposals=3, budget=24)
  np.testing.assert_array_equal(told.passes, 24 // 4)
  np.testing.assert_array_equal(told.accepted, 24 // 4 * 3)
  assert (told.acceptance, told.block_efficiency) == (1.0, 4.0)


def test_log_probabilities_are_those_of_the_target():
  rules = (Temperature(0.7), TopK(3))
  recording = Recording(entropy=True, top_k=2)
  told = generate(many(6), budget=8, decoding=Decoding(rules=rules), recording=recording)
  rollout, response = told.rollout, np.asarray(told.rollout.response)
  rows = [PROMPT + row.tolist() for row in rollout.response]
  for found, given in ((rollout.logp, ()), (rollout.behaviour_logp, rules)):
    logs = logs_of(TARGET, rows, given)[:, len(PROMPT) - 1 : -1]
    want = np.take_along_axis(logs, response[..., None], -1)[..., 0]
    np.testing.assert_allclose(found, want, atol=2e-5)
  logs = logs_of(TARGET, rows)[:, len(PROMPT) - 1 : -1]
  assert rollout.entropy is not None and rollout.top_k is not None
  np.testing.assert_allclose(rollout.entropy, -(np.exp(logs) * logs).sum(-1), atol=2e-5)
  np.testing.assert_allclose(rollout.top_k.logp, -np.sort(-logs)[..., :2], atol=2e-5)


def test_counts_add_up():
  """Every pass but the last of a row writes what was kept and one token more."""
  told = generate(PROMPTS, budget=24, proposals=3)
  lengths = told.rollout.lengths
  written = told.accepted + told.passes
  assert ((lengths == written) | (lengths == written - 1)).all()
  assert (told.accepted <= told.judged).all() and (told.judged - told.accepted <= told.passes).all()
  assert told.block_efficiency == pytest.approx(lengths.sum() / told.passes.sum())


REFUSED = {
  'proposals': ({'proposals': 0}, 'at least 1 token, got 0'),
  'vocabulary': ({'draft': model_of(0, vocab_size=7)}, 'the target has 5 rows .* the draft 7'),
  'positions': ({'draft': model_of(0, max_positions=4)}, 'may have 5 positions .* a table of 4'),
  'rules': ({'decoding': Decoding(rules=(Blend(0.5),))}, 'the rule Blend mixes the writer'),
}


@pytest.mark.parametrize('settings, message', REFUSED.values(), ids=REFUSED)
def test_what_does_not_fit_is_refused(settings, message):
  with pytest.raises(ValueError, match=message):
    generate(many(2), **settings)


def test_a_draft_that_is_broken_does_not_pass_for_a_bad_one():
  broken = DRAFT._replace(params=jax.tree.map(lambda x: x * np.nan, DRAFT.params))
  with pytest.raises(ValueError, match='the logits hold NaN'):
    generate(many(2), draft=broken)


def test_no_rows_and_no_budget_write_nothing():
  told = generate(many(2), budget=0)
  assert not told.rollout.mask.any() and np.isnan(told.acceptance)


def test_a_model_that_cannot_take_tokens_back_is_refused():
  config = FAMILIES['qwen3_5'](vocab_size=V)
  keeps = Model(config, LAYOUT, transformer.init(config, LAYOUT, jax.random.key(0)))
  for models in ({'target': keeps}, {'draft': keeps}):
    with pytest.raises(ValueError, match='qwen3_5_text keep a state that cannot take tokens back'):
      generate(many(1), **models)
