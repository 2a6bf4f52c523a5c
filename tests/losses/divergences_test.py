"""Divergences against their formulas in float64, the identity behind them, and the printed constants of the field."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from opd_jax.losses import advantages
from opd_jax.losses.divergences import (
  Alpha,
  BoundedReverseKL,
  ClampedPerEntry,
  ForwardKL,
  Hellinger,
  Jeffreys,
  JensenShannon,
  Neyman,
  Pearson,
  Raw,
  ReverseKL,
  SkewForward,
  SkewReverse,
  TotalVariation,
)

# (p, q) -> the divergence, as papers print it. Independent of the code under test.
FORMULAS = {
  ForwardKL(): lambda p, q: q * np.log(q / p),
  ReverseKL(): lambda p, q: p * np.log(p / q),
  BoundedReverseKL(bound=1.5): lambda p, q: p * np.clip(np.log(p / q), -1.5, 1.5),
  JensenShannon(beta=0.5): lambda p, q: _jsd(p, q, 0.5),
  JensenShannon(beta=0.1): lambda p, q: _jsd(p, q, 0.1),
  Jeffreys(): lambda p, q: (q - p) * np.log(q / p),
  SkewForward(alpha=0.1): lambda p, q: q * np.log(q / (0.1 * q + 0.9 * p)),
  SkewReverse(alpha=0.1): lambda p, q: p * np.log(p / (0.1 * p + 0.9 * q)),
  Alpha(alpha=0.3): lambda p, q: _cressie_read(p, q, 0.3),
  Alpha(alpha=-0.5): lambda p, q: _cressie_read(p, q, -0.5),
  Pearson(): lambda p, q: (q - p) ** 2 / p,
  Neyman(): lambda p, q: (q - p) ** 2 / q,
  TotalVariation(): lambda p, q: 0.5 * np.abs(p - q),
  Hellinger(): lambda p, q: (np.sqrt(q) - np.sqrt(p)) ** 2,
}
ALL = pytest.mark.parametrize('divergence', FORMULAS, ids=lambda each: each.name)
SMOOTH = pytest.mark.parametrize(
  'divergence',
  [each for each in FORMULAS if each.name != 'total_variation'],
  ids=lambda each: each.name,
)


def _jsd(p, q, beta):
  m = beta * q + (1 - beta) * p
  return beta * q * np.log(q / m) + (1 - beta) * p * np.log(p / m)


def _cressie_read(p, q, a):
  return (q**a * p ** (1 - a) - p - a * (q - p)) / (a * (a - 1))


def rows(seed, size=9, count=7, scale=2.0):
  logits = scale * np.random.RandomState(seed).randn(2, count, size)
  return [each - np.log(np.exp(each).sum(-1, keepdims=True)) for each in logits]


@ALL
def test_the_sum_over_entries_is_the_formula(divergence):
  log_p, log_q = rows(0)
  want = FORMULAS[divergence](np.exp(log_p), np.exp(log_q)).sum(-1)
  with jax.enable_x64(True):
    np.testing.assert_allclose(divergence(jnp.asarray(log_p), jnp.asarray(log_q)), want, rtol=1e-12)
    plain = Raw(divergence).entry(jnp.asarray(log_p), jnp.asarray(log_q))
    np.testing.assert_allclose(
      plain, FORMULAS[divergence](np.exp(log_p), np.exp(log_q)), rtol=1e-9, atol=1e-14
    )


@ALL
def test_the_gradient_is_minus_p_times_weight(divergence):
  """∂ p f(q/p) / ∂ log p = -p w(u), checked by finite differences of the formula, for centred and plain entries."""
  log_p, log_q = rows(1)
  step, formula = 1e-6, FORMULAS[divergence]
  slope = (
    formula(np.exp(log_p + step), np.exp(log_q)) - formula(np.exp(log_p - step), np.exp(log_q))
  ) / (2 * step)
  with jax.enable_x64(True):
    p, q = jnp.asarray(log_p), jnp.asarray(log_q)
    np.testing.assert_allclose(-Raw(divergence).pull(p, q), slope, rtol=1e-6, atol=1e-8)
    np.testing.assert_allclose(
      divergence.pull(p, q), jnp.exp(p) * divergence.weight(q - p), rtol=1e-9, atol=1e-12
    )
    got = jax.grad(lambda log_p: divergence(log_p, q).sum())(p)
    np.testing.assert_allclose(got, -divergence.pull(p, q), rtol=1e-12)


@ALL
def test_the_expected_corrected_advantage_is_the_exact_gradient(divergence):
  """E_p[w ∇ log p] = -∇ D, over the logits, by enumeration."""
  log_p, log_q = rows(2, count=1)
  with jax.enable_x64(True):
    z, q = jnp.asarray(log_p[0]), jnp.asarray(log_q[0])
    exact = jax.grad(lambda z: divergence(jax.nn.log_softmax(z), q))(z)
    p, weight = jnp.exp(z), advantages.corrected(divergence, q - z)
    scores = jnp.eye(len(p)) - p  # ∇ log p(v) is row v
    np.testing.assert_allclose(-(p * weight) @ scores, exact, atol=1e-13)


@SMOOTH
def test_the_naive_advantage_is_minus_f_and_biased_unless_reverse_kl(divergence):
  log_p, log_q = rows(3, count=1)
  with jax.enable_x64(True):
    z, q = jnp.asarray(log_p[0]), jnp.asarray(log_q[0])
    p, f = (
      np.exp(log_p[0]),
      FORMULAS[divergence](np.exp(log_p[0]), np.exp(log_q[0])) / np.exp(log_p[0]),
    )
    got = advantages.naive(divergence, q - z)
    np.testing.assert_allclose(got, -f, rtol=1e-9, atol=1e-12)
    gap = -(p * got) @ (np.eye(len(p)) - p) - jax.grad(
      lambda z: divergence(jax.nn.log_softmax(z), q)
    )(z)
    assert (np.abs(gap).max() < 1e-12) == (divergence.name == 'reverse_kl')


@ALL
def test_extremes_are_finite_or_honestly_infinite(divergence):
  """Entries without mass on either side are nothing; gradients never hold NaN."""
  log_p = jnp.array([-jnp.inf, -100.0, -0.0, -90.0, -1e-3, -3.0])
  log_q = jnp.array([-jnp.inf, -0.0, -100.0, -90.0, -1e-3, -3.0])
  entry, slope = divergence.entry(log_p, log_q), divergence.pull(log_p, log_q)
  assert entry[0] == slope[0] == 0 and not jnp.isnan(entry).any() and not jnp.isnan(slope).any()
  assert (entry >= 0).all() and (entry[3:] == 0).all() and (slope[3:] == 0).all()
  gradient = jax.grad(lambda z: divergence(jax.nn.log_softmax(z), jax.nn.log_softmax(-z0)))(
    z0 := jnp.arange(4.0) * 20
  )
  assert not jnp.isnan(gradient).any() or divergence.name in ('pearson', 'neyman')


@ALL
def test_small_divergences_keep_their_digits_in_float32(divergence):
  """A shift of all log-probabilities by a rounding error must not show: that is what centring is for."""
  if divergence.name == 'total_variation':
    pytest.skip('linear in the gap, as it should be')
  rng = np.random.RandomState(4)
  log_p = np.log(rng.dirichlet(np.ones(1000)))
  log_q = log_p + 1e-3 * rng.randn(1000)
  log_q -= np.log(np.exp(log_q).sum())
  want = FORMULAS[divergence](np.exp(log_p), np.exp(log_q)).sum()
  got = divergence(jnp.asarray(log_p + 4e-6, jnp.float32), jnp.asarray(log_q, jnp.float32))
  assert want < 1e-6 and abs(float(got) / want - 1) < 3e-3


def test_the_teacher_gets_no_gradient():
  log_p, log_q = (jnp.asarray(each, jnp.float32) for each in rows(5))
  for divergence in FORMULAS:
    assert not jax.grad(lambda log_q, d=divergence: d(log_p, log_q).sum())(log_q).any()


def test_the_family_has_its_limits():
  log_p, log_q = rows(6)
  with jax.enable_x64(True):
    p, q = jnp.asarray(log_p), jnp.asarray(log_q)
    close = lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4)
    close(JensenShannon(beta=1e-6)(p, q) / 1e-6, ForwardKL()(p, q))
    close(JensenShannon(beta=1 - 1e-6)(p, q) / 1e-6, ReverseKL()(p, q))
    close(Alpha(alpha=1 - 1e-6)(p, q), ForwardKL()(p, q))
    close(Alpha(alpha=1e-6)(p, q), ReverseKL()(p, q))
    close(SkewForward(alpha=1e-7)(p, q), ForwardKL()(p, q))
    close(SkewReverse(alpha=1e-7)(p, q), ReverseKL()(p, q))
    close(Jeffreys()(p, q), ForwardKL()(p, q) + ReverseKL()(p, q))
    gap = q - p
    close(advantages.bridge(gap, beta=1e-7), advantages.corrected(ForwardKL(), gap))
    close(advantages.bridge(gap, beta=0.0), advantages.corrected(ForwardKL(), gap))
    close(advantages.bridge(gap, beta=1.0), gap)
    close(
      advantages.bridge(gap, beta=0.3) * 0.3 * 0.7,
      advantages.corrected(JensenShannon(beta=0.3), gap),
    )
    close(advantages.proximal(gap, fraction=0.2), jnp.log(0.2 * jnp.exp(gap) + 0.8))


# methods with V = 5: logits of student and teacher, values and gradients printed to six digits.
Z, Z_TEACHER = np.array([2, 1, 0, -1, 0.5]), np.array([0.2, 2, 1, -2, 0])
PRINTED = {
  ForwardKL(): (0.635143, [0.465027, -0.385704, -0.141893, 0.017173, 0.045396]),
  ReverseKL(): (0.769375, [0.551219, -0.377165, -0.138751, 0.005019, -0.040322]),
  JensenShannon(beta=0.5): (0.161200, [0.108082, -0.083558, -0.030739, 0.003041, 0.003174]),
  JensenShannon(beta=0.3): (0.132637, [0.090670, -0.072276, -0.026589, 0.002912, 0.005283]),
  ClampedPerEntry(inner=ForwardKL(), max=0.05): (
    -0.117608,
    [0.008464, 0.039164, 0.014407, -0.005558, -0.056477],
  ),
  ClampedPerEntry(inner=ForwardKL(), max=0.05, min=-0.05): (
    0.003726,
    [0.051285, 0.018867, 0.006941, -0.008305, -0.068787],
  ),
}


@pytest.mark.parametrize('divergence', PRINTED, ids=lambda each: each.name)
def test_the_printed_vectors_reproduce(divergence):
  with jax.enable_x64(True):
    log_q = jax.nn.log_softmax(jnp.asarray(Z_TEACHER))
    value, gradient = jax.value_and_grad(lambda z: divergence(jax.nn.log_softmax(z), log_q))(
      jnp.asarray(Z, float)
    )
  np.testing.assert_allclose(value, PRINTED[divergence][0], atol=5.1e-7)
  np.testing.assert_allclose(gradient, PRINTED[divergence][1], atol=5.1e-7)


@pytest.mark.parametrize(
  'make',
  [
    lambda: JensenShannon(beta=0.0),
    lambda: JensenShannon(beta=1.0),
    lambda: SkewForward(alpha=0.0),
    lambda: SkewReverse(alpha=1.0),
    lambda: Alpha(alpha=0.0),
    lambda: Alpha(alpha=1.0),
    lambda: advantages.bridge(jnp.zeros(1), beta=1.5),
  ],
)
def test_ends_are_refused_by_name(make):
  with pytest.raises(ValueError, match=r'KL'):
    make()


def test_advantages_of_one_token_are_the_formulas():
  teacher, student, base = jnp.array([-1.0, -4.0]), jnp.array([-2.0, -1.0]), jnp.array([-3.0, -3.5])
  gap = advantages.log_ratio(teacher, student)
  assert gap.tolist() == [1.0, -3.0]
  assert advantages.clipped(gap, min=-2.0, max=0.5).tolist() == [0.5, -2.0]
  np.testing.assert_allclose(advantages.log_compressed(gap), [math.log(2), -math.log(4)], rtol=1e-6)
  np.testing.assert_allclose(
    advantages.squashed(gap, bound=2.0), 2 * np.tanh([0.5, -1.5]), rtol=1e-6
  )
  np.testing.assert_allclose(
    advantages.power(teacher, student, exponent=2.0),
    np.exp([-2.0, -8.0]) - np.exp([-4.0, -2.0]),
    rtol=1e-6,
  )
  np.testing.assert_allclose(
    advantages.extrapolated(teacher, student, base, strength=1.25), [1.5, -3.125]
  )
  assert advantages.extrapolated(teacher, student, base, strength=1.0).tolist() == gap.tolist()
  assert advantages.delta(teacher, base).tolist() == [2.0, -0.5]


def test_equal_settings_are_one_record():
  """Terms are static arguments of jit: equal settings must not compile twice, and others must."""
  assert JensenShannon(beta=0.3) == JensenShannon(beta=0.3) != JensenShannon(beta=0.4)
  assert hash(Raw(ForwardKL())) == hash(Raw(ForwardKL())) and ForwardKL() != ReverseKL()
  assert len({each.name for each in FORMULAS}) == len(FORMULAS)
