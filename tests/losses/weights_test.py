"""Weights and normalisers: what they promise about budgets, means, ties and rows that are not there."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from opd_jax.losses import normalisers, weights

LENGTHS = np.array([6, 1, 0, 4])
MASK = jnp.asarray(np.arange(6) < LENGTHS[:, None])
RNG = np.random.RandomState(0)
GAP = jnp.asarray(RNG.randn(4, 6), jnp.float32)


def counted(x):
  return np.asarray(x)[np.asarray(MASK)]


def test_normalisers_sum_to_what_they_say():
  assert float(normalisers.per_token(MASK).sum()) == pytest.approx(1)
  by_row = np.asarray(normalisers.per_sequence(MASK).sum(axis=1))
  np.testing.assert_allclose(by_row, [1 / 3, 1 / 3, 0, 1 / 3], rtol=1e-6)
  assert float(normalisers.summed(MASK).sum()) == 11
  assert float(normalisers.fixed_length(MASK, tokens=10).sum()) == pytest.approx(11 / 30)
  kept = normalisers.filtered(MASK, jnp.array([True, False, True, False]))
  assert float(kept.sum()) == pytest.approx(1) and not kept[3].any()


@pytest.mark.parametrize(
  'normaliser',
  [
    normalisers.per_token,
    normalisers.per_sequence,
    lambda m: normalisers.fixed_length(m, tokens=3),
  ],
)
def test_nothing_written_gives_nothing_and_padding_changes_nothing(normaliser):
  assert not normaliser(jnp.zeros((3, 4), bool)).any()
  wider = jnp.pad(MASK, ((0, 0), (0, 5)))
  np.testing.assert_array_equal(normaliser(wider)[:, :6], normaliser(MASK))


@pytest.mark.parametrize('signed', [False, True])
def test_prefix_weights_lie_between_one_and_one_plus_gamma(signed):
  weight = weights.prefix_discrepancy(GAP, MASK, gamma=0.5, signed=signed)
  assert (
    (counted(weight) >= 1).all() and (counted(weight) <= 1.5).all() and (weight[:, 0] == 1.5).all()
  )
  if not signed:
    assert (np.diff(np.asarray(weight)[0]) <= 0).all()
  assert np.isfinite(np.asarray(weights.prefix_discrepancy(0 * GAP, MASK))).all()


def test_an_even_gap_decays_linearly():
  np.testing.assert_allclose(
    counted(weights.prefix_discrepancy(jnp.ones_like(GAP), MASK)),
    counted(weights.linear(MASK)),
    rtol=1e-6,
  )


@pytest.mark.parametrize('share', [0.05, 0.3, 0.5, 1.0])
def test_selectors_spend_the_same_budget(share):
  wanted = np.maximum(np.ceil(share * LENGTHS), LENGTHS > 0)
  top = weights.top_fraction(GAP, MASK, fraction=share)
  for chosen in (top, weights.random_mask(jax.random.key(0), MASK, fraction=share)):
    np.testing.assert_array_equal(np.asarray(chosen).sum(axis=1), wanted)
    assert not np.asarray(chosen)[~np.asarray(MASK)].any()
  np.testing.assert_array_equal(
    np.asarray(weights.first(MASK, fraction=share) * MASK).sum(axis=1), np.ceil(share * LENGTHS)
  )
  np.testing.assert_array_equal(
    np.asarray(weights.last(MASK, fraction=share) * MASK).sum(axis=1), np.ceil(share * LENGTHS)
  )
  lowest = np.where(np.asarray(top) > 0, np.asarray(GAP), np.inf).min(axis=1)
  rest = np.where(np.asarray(MASK) & (np.asarray(top) == 0), np.asarray(GAP), -np.inf).max(axis=1)
  assert (lowest >= rest).all()


def test_ties_go_to_the_earlier_token_and_a_shift_changes_no_choice():
  even = weights.top_fraction(jnp.zeros_like(GAP), MASK, fraction=0.5)
  assert even[0].tolist() == [1, 1, 1, 0, 0, 0]
  for shift in (0.0, 3.0):
    np.testing.assert_allclose(
      weights.robust(GAP + shift, MASK), weights.robust(GAP, MASK), atol=1e-5
    )
  robust = counted(weights.robust(GAP, MASK))
  assert robust.min() == 0 and robust.max() == 1


def test_whitening_clamps_before_it_scales():
  wild = GAP.at[0, 0].set(1e6)
  white = counted(weights.whitened(wild, MASK, bound=2.0))
  assert abs(white.mean()) < 1e-6 and abs(white.std() - 1) < 1e-5 and np.abs(white).max() < 5
  assert not np.asarray(weights.whitened(wild, jnp.zeros_like(MASK))).any()


def test_mean_one_and_confidence_have_mean_one():
  assert counted(weights.mean_one(jnp.exp(GAP), MASK)).mean() == pytest.approx(1, rel=1e-5)
  entropy = jnp.abs(GAP)
  confident = weights.confidence(entropy, entropy[::-1], MASK)
  np.testing.assert_allclose(
    np.asarray(confident).sum(axis=1)[LENGTHS > 0] / LENGTHS[LENGTHS > 0], 1.0, rtol=1e-5
  )
  sure = weights.confidence(jnp.zeros_like(GAP), entropy, MASK, student=0.0)
  np.testing.assert_allclose(counted(sure), 1.0, rtol=1e-6)


def test_filters_and_groups():
  score = jnp.array([3.0, 1.0, -9.0, 2.0])
  assert weights.quantile_filter(score, MASK, drop=0.34).tolist() == [True, False, False, True]
  assert weights.quantile_filter(score, MASK, drop=0.0).tolist() == [True, True, False, True]
  group, right = jnp.array([0, 0, 0, 1]), jnp.array([True, True, False, True])
  weighted_terms = weights.group_softmax(score, group, right)
  np.testing.assert_allclose(
    weighted_terms, [2 / (1 + np.exp(-2)), 2 / (1 + np.exp(2)), 0, 1], rtol=1e-5
  )
  advantage = weights.group_advantage(jnp.array([1.0, 0.0, jnp.nan, 1.0]), group)
  np.testing.assert_allclose(advantage, [1, -1, 0, 0], atol=1e-4)
  gate = weights.sign_gate(advantage, jnp.ones((4, 2)).at[0, 1].set(-1.0))
  assert gate.tolist() == [[True, False], [False, False], [False, False], [False, False]]


def test_truncated_importance_never_exceeds_its_bound():
  ratio = weights.truncated_importance(jnp.array([[0.0, 90.0, -1.0]]), jnp.zeros((1, 3)), most=5.0)
  np.testing.assert_allclose(ratio, [[1.0, 5.0, np.exp(-1)]], rtol=1e-6)
  np.testing.assert_allclose(weights.mean_logp(GAP, MASK)[1], GAP[1, 0])


@pytest.mark.parametrize('make', [weights.first, weights.last])
def test_shares_outside_their_range_are_refused(make):
  with pytest.raises(ValueError, match='between 0 and 1'):
    make(MASK, fraction=1.5)
