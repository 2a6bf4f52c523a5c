"""Each rule against its distribution by hand; the draw against the chi-square of 200,000 tosses."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from opd_jax.inference.decoding import (
  Decoding,
  Forbid,
  Greedy,
  MinP,
  RepetitionStop,
  Temperature,
  TopK,
  TopP,
  _invert,
  draw,
)
from opd_jax.inference.guided import Blend, Mixture
from opd_jax.ramps import Piecewise, Ramp

P = np.array([0.05, 0.4, 0.1, 0.3, 0.15])
Q = np.array([0.3, 0.1, 0.1, 0.2, 0.3])


def normal(p):
  return np.asarray(p, np.float64) / np.sum(p)


RULES = {
  'none': ((), P),
  'temperature': ((Temperature(0.5),), normal(P**2)),
  'greedy': ((Greedy(),), np.array([0, 1.0, 0, 0, 0])),
  'top_k': ((TopK(2),), normal([0, 0.4, 0, 0.3, 0])),
  'top_p': ((TopP(0.6),), normal([0, 0.4, 0, 0.3, 0])),
  'top_p tiny': ((TopP(0.01),), np.array([0, 1.0, 0, 0, 0])),
  'min_p': ((MinP(0.37),), normal([0, 0.4, 0, 0.3, 0.15])),
  'forbid': ((Forbid((1, 3)),), normal([0.05, 0, 0.1, 0, 0.15])),
  'forbid all but one': ((Forbid((0, 1, 3, 4)),), np.array([0, 0, 1.0, 0, 0])),
  'blend': ((Blend(0.25),), normal(P**0.75 * Q**0.25)),
  'blend 0': ((Blend(0.0),), P),
  'blend 1': ((Blend(1.0),), Q),
  'mixture': ((Mixture(0.2),), 0.8 * P + 0.2 * Q),
  'mixture 0': ((Mixture(0.0),), P),
  'mixture 1': ((Mixture(1.0),), Q),
  'mixture of what is left': (
    (TopK(2), Mixture(0.5)),
    normal([0, 0.5 * 0.4 / 0.7 + 0.05, 0, 0.5 * 0.3 / 0.7 + 0.1, 0]),
  ),
  'chain': (
    (Temperature(2.0), TopK(4), TopP(0.8)),
    normal([0, *np.sqrt([0.4]), 0, *np.sqrt([0.3, 0.15])]),
  ),
}


def scores_of(rules, rows=1):
  logits = [jnp.tile(jnp.log(jnp.asarray(p, jnp.float32)) + 3.0, (rows, 1)) for p in (P, Q)]
  return Decoding(rules=rules).distribution(logits)


@pytest.mark.parametrize('rules, want', RULES.values(), ids=RULES)
def test_a_rule_makes_the_distribution_it_names(rules, want):
  np.testing.assert_allclose(jax.nn.softmax(scores_of(rules))[0], want, atol=1e-6)


@pytest.mark.parametrize('rules, want', RULES.values(), ids=RULES)
def test_draws_follow_the_distribution(rules, want):
  """Chi-square at fixed seed: the 0.9999 quantile for 4 degrees of freedom is 23.5."""
  tosses = 200_000
  keys = jax.random.split(jax.random.key(7), tosses)
  tokens = jax.jit(draw)(scores_of(rules, tosses), keys)
  seen = np.bincount(np.asarray(tokens), minlength=5)
  assert seen[want == 0].sum() == 0
  expected = tosses * want[want > 0]
  assert ((seen[want > 0] - expected) ** 2 / expected).sum() < 23.5
  behaviour = jax.nn.log_softmax(scores_of(rules))[0]
  np.testing.assert_allclose(np.exp(behaviour), seen / tosses, atol=0.005)


def test_draws_follow_a_large_vocabulary_with_a_long_tail():
  """10,000 tokens by Zipf's law, in 32 groups of equal-ish mass: the blocks leave no demonstration."""
  size, tosses = 10_000, 200_000
  chances = 1 / np.arange(1, size + 1)
  chances = np.random.RandomState(0).permutation(chances / chances.sum())
  order = np.argsort(-chances)
  group = np.empty(size, int)
  group[order] = np.minimum((np.cumsum(chances[order]) * 32).astype(int), 31)
  draws = jax.jit(
    lambda keys: draw(jnp.tile(jnp.log(jnp.asarray(chances, jnp.float32)), (len(keys), 1)), keys)
  )
  keys = jax.random.split(jax.random.key(3), tosses).reshape(100, -1)
  seen = np.bincount(
    group[np.concatenate([np.asarray(draws(part)) for part in keys])], minlength=32
  )
  expected = tosses * np.bincount(group, weights=chances, minlength=32)
  kept = expected > 0
  assert ((seen - expected)[kept] ** 2 / expected[kept]).sum() < 68  # the 0.9999 quantile for 31


@pytest.mark.parametrize('size', [1, 2, 3, 5, 16, 17, 1000])
def test_every_vocabulary_size_reaches_its_first_and_last_token(size):
  for only in (0, size - 1):
    scores = jnp.where(jnp.arange(size) == only, 5.0, -jnp.inf)[None].repeat(64, axis=0)
    assert (draw(scores, jax.random.split(jax.random.key(0), 64)) == only).all()


@pytest.mark.parametrize('width', [32, 512, 1024])
def test_a_draw_never_lands_on_an_entry_without_mass(width):
  """Uniforms at the very cumulative values, where a sum that is not monotone would give it away."""
  rng = np.random.RandomState(width)
  mass = jnp.asarray(rng.rand(200, width) * (rng.rand(200, width) < 0.3), jnp.float32)
  cumulative = jnp.cumsum(mass, axis=-1)
  share = jnp.clip(cumulative / cumulative[:, -1:], 0, 1 - 2**-23)
  for column in range(0, width, 7):
    for nudge in (-(2**-23), 0.0, 2**-23):
      uniform = jnp.clip(share[:, column] + nudge, 0, 1 - 2**-23)
      chosen = _invert(mass, uniform)
      assert (jnp.take_along_axis(mass, chosen[:, None], axis=-1) > 0).all()


def test_greedy_is_not_certain_of_nan_or_of_nothing():
  for bad in (jnp.full((1, 3), jnp.nan), jnp.full((1, 3), -jnp.inf)):
    assert not np.isfinite(jax.nn.log_softmax(Greedy()(bad, [bad], {}))).all()


def test_top_p_of_one_keeps_everything():
  scores = jnp.asarray(np.random.RandomState(0).standard_normal((2, 50_000)), jnp.float32)
  assert np.isfinite(TopP(1.0)(scores, [scores], {})).all()


def test_ties_keep_the_first():
  flat = jnp.zeros((1, 6))
  assert np.isfinite(TopK(2)(flat, [flat], {})).tolist() == [
    [True, True, False, False, False, False]
  ]
  assert np.isfinite(Greedy()(flat, [flat], {})).tolist() == [
    [True, False, False, False, False, False]
  ]


@pytest.mark.parametrize(
  'make, words',
  [
    (lambda: Temperature(0.0), r'Temperature: must be above 0 .*Greedy'),
    (lambda: TopK(0), 'k must be at least 1'),
    (lambda: TopP(0.0), r'p must lie in \(0, 1\], got 0.0'),
    (lambda: TopP(1.5), 'got 1.5'),
    (lambda: MinP(2.0), 'fraction'),
    (lambda: Blend(-0.1), 'beta'),
    (lambda: Mixture(1.1), 'alpha'),
    (lambda: Blend(Ramp(begin=0.5, end=1.5, steps=4)), 'beta'),
    (lambda: Temperature(Ramp(begin=1.0, end=0.0, steps=4)), 'above 0'),
    (lambda: Temperature(Piecewise(points=((0, 1.0), (9, -1.0)))), 'above 0'),
    (lambda: RepetitionStop(times=1), 'at least 2 times'),
    (lambda: RepetitionStop(periods=()), 'RepetitionStop'),
  ],
)
def test_settings_without_meaning_are_refused(make, words):
  with pytest.raises(ValueError, match=words):
    make()


@pytest.mark.parametrize('rule', [Blend(0.5), Mixture(0.5)])
def test_a_mixture_needs_a_second_model(rule):
  with pytest.raises(ValueError, match=f'{type(rule).__name__}: it mixes two models'):
    rule(jnp.zeros((1, 3)), [jnp.zeros((1, 3))], {})


SCHEDULE = Decoding(
  rules=(
    Temperature(Ramp(begin=1.0, end=0.5, steps=4)),
    Blend(Piecewise(points=((0, 1.0), (4, 0.0)))),
    TopK(4),
    Temperature(Ramp(begin=1.0, end=0.5, steps=4)),
  )
)


def test_numbers_that_move_are_arguments_of_one_program():
  """A whole schedule is compiled once, and at every step it is the decoding whose numbers stand there."""
  traced = 0

  @functools.partial(jax.jit, static_argnames='decoding')
  def distribution(models, numbers, *, decoding):
    nonlocal traced
    traced += 1
    return decoding.distribution(models, dict(zip(decoding.moving, numbers, strict=True)))

  models = [jnp.log(jnp.asarray(p, jnp.float32))[None] for p in (P, Q)]
  assert len(SCHEDULE.moving) == 2  # a ramp that stands twice is one number
  for step in range(6):
    way = min(step / 4, 1.0)
    heat, beta = 1.0 - 0.5 * way, 1.0 - way
    assert SCHEDULE.numbers_at(step) == (np.float32(heat), np.float32(beta))
    fixed = Decoding(rules=(Temperature(heat), Blend(beta), TopK(4), Temperature(heat)))
    got = distribution(models, SCHEDULE.numbers_at(step), decoding=SCHEDULE)
    np.testing.assert_allclose(got, fixed.distribution(models), rtol=1e-5, atol=1e-6)
  assert traced == 1 and Decoding().moving == () == Decoding().numbers_at(3)


def test_repetition_is_the_same_block_over_and_over():
  stop = RepetitionStop(periods=(1, 3), times=3)
  rows = jnp.array(
    [
      [0, 0, 0, 1, 2, 3, 7, 7, 7],  # period 1
      [1, 2, 3, 1, 2, 3, 1, 2, 3],  # period 3
      [1, 2, 3, 1, 2, 3, 1, 2, 4],
      [-1, -1, -1, -1, -1, -1, -1, -1, -1],  # nothing written
    ]
  )
  assert stop(rows).tolist() == [True, True, False, False]
