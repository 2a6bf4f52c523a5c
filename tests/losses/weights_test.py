"""Weights and normalisers: what they promise about budgets, means, ties and rows that are not there."""

from fractions import Fraction

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from opd_jax.losses import normalisers, selectors, weights

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
  kept = normalisers.filtered(MASK, jnp.array([True, False, True, False]))
  assert float(kept.sum()) == pytest.approx(1) and not kept[3].any()


@pytest.mark.parametrize(
  'normaliser',
  [
    normalisers.per_token,
    normalisers.per_sequence,
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


@pytest.mark.parametrize('fraction', [0.05, 0.3, 0.5, 1.0])
def test_selectors_spend_the_same_budget(fraction):
  wanted = np.maximum(np.ceil(fraction * LENGTHS), LENGTHS > 0)
  top = selectors.top_fraction(GAP, MASK, fraction=fraction)
  for chosen in (top, selectors.random_mask(jax.random.key(0), MASK, fraction=fraction)):
    np.testing.assert_array_equal(np.asarray(chosen).sum(axis=1), wanted)
    assert not np.asarray(chosen)[~np.asarray(MASK)].any()
  np.testing.assert_array_equal(
    np.asarray(selectors.first(MASK, fraction=fraction) * MASK).sum(axis=1),
    np.ceil(fraction * LENGTHS),
  )
  np.testing.assert_array_equal(
    np.asarray(selectors.last(MASK, fraction=fraction) * MASK).sum(axis=1),
    np.ceil(fraction * LENGTHS),
  )
  lowest = np.where(np.asarray(top) > 0, np.asarray(GAP), np.inf).min(axis=1)
  rest = np.where(np.asarray(MASK) & (np.asarray(top) == 0), np.asarray(GAP), -np.inf).max(axis=1)
  assert (lowest >= rest).all()


@pytest.mark.parametrize('fraction', [0.05, 0.3, 1.0])
def test_the_best_of_a_batch_are_so_many_of_all_tokens_whatever_their_rows(fraction):
  chosen = np.asarray(selectors.best_of_the_batch(GAP, MASK, jnp.arange(4), fraction=fraction))
  wanted = max(int(np.ceil(fraction * LENGTHS.sum() - 1e-9)), 1)
  assert sorted(np.asarray(GAP)[chosen]) == sorted(counted(GAP))[-wanted:]
  even = selectors.best_of_the_batch(0 * GAP, MASK, jnp.array([3, 2, 1, 0]), fraction=0.3)
  assert np.asarray(even).sum(axis=1).tolist() == [0, 0, 0, 4]  # the row of lower number


def test_a_drawn_mask_has_as_many_tokens_of_every_row_as_what_it_is_held_against():
  chosen = MASK & (GAP > 0)
  found = {
    np.asarray(selectors.drawn_like(jax.random.key(seed), chosen, MASK)).tobytes()
    for seed in range(8)
  }
  drawn = np.array([np.frombuffer(each, bool).reshape(MASK.shape) for each in found])
  assert len(found) > 4 and not drawn[:, ~np.asarray(MASK)].any()
  assert (drawn.sum(axis=2) == np.asarray(chosen).sum(axis=1)).all()


@pytest.mark.parametrize('count', [1, 3, 99])
def test_a_count_is_spent_from_the_best_down_and_never_exceeds_a_response(count):
  chosen = np.asarray(selectors.top_count(GAP, MASK, count=count)) > 0
  mask, gap = np.asarray(MASK), np.asarray(GAP)
  np.testing.assert_array_equal(chosen.sum(axis=1), np.minimum(LENGTHS, count))
  assert not chosen[~mask].any()
  for row in range(len(gap)):
    best = np.sort(gap[row][mask[row]])[::-1][:count]
    np.testing.assert_array_equal(np.sort(gap[row][chosen[row]])[::-1], best)
  with pytest.raises(ValueError, match='at least one token, got 0'):
    selectors.top_count(GAP, MASK, count=0)


def test_freshness_is_one_where_nothing_has_moved_and_finite_where_all_has():
  own = jnp.log(jnp.full(MASK.shape, 0.5))
  np.testing.assert_array_equal(weights.freshness(own, own, MASK), 1.0)
  for ratio in (2.0, 0.5):
    kl = ratio * np.log(ratio) - ratio + 1
    got = weights.freshness(own, own - np.log(ratio), MASK, drift=0.7)
    want = np.where(LENGTHS > 0, np.exp(-0.7 * np.sqrt(kl)), 1.0)
    np.testing.assert_allclose(got, want, rtol=1e-5)
  far = weights.freshness(own, own + jnp.where(MASK, 200.0, 0.0), MASK)
  np.testing.assert_allclose(far, np.where(LENGTHS > 0, np.exp(-1), 1.0), rtol=1e-5)
  assert np.asarray(weights.freshness(own, own - 200.0, MASK))[np.asarray(LENGTHS) > 0].max() == 0


def test_weights_that_are_dealt_at_random_stay_among_responses_with_tokens():
  there = np.asarray(MASK).any(axis=1)
  weight = jnp.arange(len(there), dtype=float) + 1
  dealt = [np.asarray(weights.dealt_at_random(jax.random.key(n), weight, MASK)) for n in range(8)]
  for each in dealt:
    np.testing.assert_array_equal(np.sort(each[there]), np.asarray(weight)[there])
    np.testing.assert_array_equal(each[~there], np.asarray(weight)[~there])
  assert len({tuple(each) for each in dealt}) > 1


def test_ties_go_to_the_earlier_token_and_a_shift_changes_no_choice():
  even = selectors.top_fraction(jnp.zeros_like(GAP), MASK, fraction=0.5)
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
  share = weights.group_softmax(score, group, right, MASK)
  np.testing.assert_allclose(share, [2 / (1 + np.exp(-2)), 2 / (1 + np.exp(2)), 0, 1], rtol=1e-5)
  advantage = weights.group_advantage(jnp.array([1.0, 0.0, jnp.nan, 1.0]), group)
  np.testing.assert_allclose(advantage, [1, -1, 0, 0], atol=1e-4)
  gate = weights.sign_gate(advantage, jnp.ones((4, 2)).at[0, 1].set(-1.0))
  assert gate.tolist() == [[True, False], [False, False], [False, False], [False, False]]


def test_a_right_response_without_tokens_has_no_share():
  """It would otherwise take its part of the group's budget and spend it on nothing."""
  score = jnp.array([3.0, 1.0, 50.0, 2.0])  # row 2 is empty
  group, right = jnp.zeros(4, jnp.int32), jnp.array([True, True, True, False])
  share = np.asarray(weights.group_softmax(score, group, right, MASK))
  np.testing.assert_allclose(share[:2], [2 / (1 + np.exp(-2)), 2 / (1 + np.exp(2))], rtol=1e-5)
  assert share[2] == share[3] == 0
  none = weights.group_softmax(score, group, right, jnp.zeros_like(MASK))
  assert not np.asarray(none).any()
  hot = weights.group_softmax(score, group, right, MASK, temperature=4.0)
  np.testing.assert_allclose(hot[0] / hot[1], np.exp(0.5), rtol=1e-5)
  assert float(np.asarray(hot).sum()) == pytest.approx(2)


@pytest.mark.parametrize('reward', [0.1, 0.3, 1 / 3, 0.7, 1.0, -0.1])
def test_a_group_that_agrees_has_no_advantage_at_all(reward):
  """Exactly zero, whatever the rounding of its mean: a tenth, three times, has no exact mean in float32."""
  for size in (1, 2, 3, 5, 7):
    rewards = jnp.full(size + 1, reward, jnp.float32).at[-1].set(jnp.nan)
    advantage = weights.group_advantage(rewards, jnp.zeros(size + 1, jnp.int32))
    np.testing.assert_array_equal(advantage, 0.0)


def test_a_group_that_differs_a_little_has_an_advantage_of_full_size():
  advantage = weights.group_advantage(jnp.array([0.1, 0.1, 0.2]), jnp.zeros(3, jnp.int32))
  np.testing.assert_allclose(advantage, np.array([-1, -1, 2]) / np.sqrt(2), rtol=1e-4)
  many = np.asarray(RNG.rand(12), np.float32)
  group = np.arange(12) % 3
  advantage = np.asarray(weights.group_advantage(jnp.asarray(many), jnp.asarray(group)))
  for number in range(3):
    mine = many[group == number].astype(np.float64)
    want = (mine - mine.mean()) / (mine.std() + 1e-6)
    np.testing.assert_allclose(advantage[group == number], want, rtol=1e-4, atol=1e-6)


def test_right_wrong_and_unknown_are_three_things():
  reward = jnp.array([1.0, 0.0, -1.0, jnp.nan, 0.5])
  assert weights.right(reward).tolist() == [True, False, False, False, True]
  assert weights.wrong(reward).tolist() == [False, True, True, False, False]
  assert weights.unknown(reward).tolist() == [False, False, False, True, False]


HUNDREDTHS = [Fraction(k, 100) for k in range(101)]
THOUSANDTHS = [Fraction(k, 1000) for k in range(1001)]
THIRDS = [Fraction(k, n) for n in (3, 6, 7, 9, 11) for k in range(1, n)]


def rounded_up(fraction, lengths):
  return [-(-fraction.numerator * int(n) // fraction.denominator) for n in lengths]


def test_a_part_of_a_response_is_rounded_up_as_rational_numbers_say():
  """In float32 and float64, for every length up to 128: 0.3 · 50 is 15, and 0.301 · 50 is 16."""
  lengths = np.arange(129)
  mask = np.arange(128) < lengths[:, None]
  for exact in HUNDREDTHS + THOUSANDTHS[::7] + THIRDS:
    got = selectors.part_of(mask, float(exact))[:, 0]
    assert got.tolist() == rounded_up(exact, lengths), exact
  with jax.enable_x64(True):
    assert selectors.part_of(mask, 0.3)[50] == 15 and selectors.part_of(mask, 0.301)[50] == 16


def test_a_part_of_a_long_response_is_exact_too():
  """Up to 10,000 tokens, where a thousandth of a token is less than the spacing of float32."""
  lengths = np.unique([0, 1, 50, 100, 333, 4999, 7777, 9001, 9990, 9997, 9999, 10_000])
  mask = np.arange(10_000) < lengths[:, None]
  for exact in HUNDREDTHS[::9] + THOUSANDTHS[::13] + THOUSANDTHS[-12:] + THIRDS[::5]:
    got = selectors.part_of(mask, float(exact))[:, 0]
    assert got.tolist() == rounded_up(exact, lengths), exact


@pytest.mark.parametrize('fraction', [0.05, 0.29, 0.3, 0.57, 0.7, 1.0])
def test_a_quantile_drops_as_many_rows_as_rational_numbers_say(fraction):
  exact = Fraction(str(fraction))
  for rows in (1, 10, 50, 100):
    score, mask = jnp.arange(float(rows)), jnp.ones((rows, 1), bool)
    kept = weights.quantile_filter(score, mask, drop=fraction)
    assert int(kept.sum()) == rows - exact.numerator * rows // exact.denominator


def test_truncated_importance_never_exceeds_its_bound():
  ratio = weights.truncated_importance(jnp.array([[0.0, 90.0, -1.0]]), jnp.zeros((1, 3)), max=5.0)
  np.testing.assert_allclose(ratio, [[1.0, 5.0, np.exp(-1)]], rtol=1e-6)
  np.testing.assert_allclose(weights.mean_logp(GAP, MASK)[1], GAP[1, 0])


@pytest.mark.parametrize('make', [selectors.first, selectors.last])
def test_fractions_outside_their_range_are_refused(make):
  with pytest.raises(ValueError, match='between 0 and 1'):
    make(MASK, fraction=1.5)
