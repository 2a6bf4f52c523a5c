"""Rules that read a second model: a trust region against numpy's bisection, replacement against all pairs of draws."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from opd_jax.inference.decoding import Decoding, TopK
from opd_jax.inference.guided import Replaced, TrustRegion
from opd_jax.ramps import Ramp

ROWS, V = 6, 40
P, Q = 2.0 * np.random.RandomState(0).randn(2, ROWS, V)
Q[0] = P[0] + 0.01 * Q[0]  # a row in which the models all but agree
NEAR, FAR = 0.02, 0.3


@pytest.fixture(autouse=True)
def float64():
  with jax.enable_x64(True):
    yield


def log_softmax(x):
  x = x - x.max(-1, keepdims=True)
  return x - np.log(np.exp(x).sum(-1, keepdims=True))


def blended(b, p=P, q=Q):
  """log μ_b of every row."""
  return log_softmax((1 - b) * log_softmax(p) + b * log_softmax(q))


def kl(b, p=P, q=Q):
  mu = blended(b, p, q)
  return (np.exp(mu) * (mu - log_softmax(p))).sum(-1)


def largest(row, eps):
  """b of one row, by 60 halvings."""
  p, q = P[row : row + 1], Q[row : row + 1]
  if kl(1.0, p, q)[0] <= eps:
    return 1.0
  low, high = 0.0, 1.0
  for _ in range(60):
    middle = (low + high) / 2
    low, high = (middle, high) if kl(middle, p, q)[0] <= eps else (low, middle)
  return low


def written(*rules, p=P, q=Q):
  """log-probabilities of the distribution that is drawn from."""
  models = [jnp.asarray(p), jnp.asarray(q)]
  return np.asarray(jax.nn.log_softmax(Decoding(rules=rules).distribution(models)))


@pytest.mark.parametrize('eps', [1e-5, NEAR, FAR])
def test_a_trust_region_is_the_largest_part_of_the_teacher_inside_it(eps):
  want = np.concatenate(
    [blended(largest(row, eps), P[row : row + 1], Q[row : row + 1]) for row in range(ROWS)]
  )
  got = written(TrustRegion(eps))
  np.testing.assert_allclose(got, want, atol=2e-6)  # 24 halvings, scores of up to some tens
  size = (np.exp(got) * (got - log_softmax(P))).sum(-1)
  assert (size <= eps * (1 + 1e-9)).all() and (size[1:] > 0.999 * eps).all()


def test_a_teacher_inside_the_region_writes_alone_and_without_a_region_the_student_does():
  assert kl(1.0)[0] < NEAR < kl(1.0)[1:].min()
  np.testing.assert_allclose(written(TrustRegion(NEAR))[0], log_softmax(Q)[0], atol=1e-13)
  np.testing.assert_allclose(written(TrustRegion(1e9)), log_softmax(Q), atol=1e-13)
  np.testing.assert_array_equal(written(TrustRegion(0.0)), written())


def test_in_float32_a_small_region_is_as_large_as_asked_and_none_is_exactly_the_student():
  p, q = P.astype(np.float32), Q.astype(np.float32)
  got = written(TrustRegion(1e-5), p=p, q=q)
  assert got.dtype == np.float32
  gap = got.astype(np.float64) - log_softmax(P)
  size = (np.exp(log_softmax(P)) * (np.exp(gap) * gap - np.expm1(gap))).sum(-1)
  np.testing.assert_allclose(size[1:], 1e-5, rtol=0.05)
  np.testing.assert_array_equal(written(TrustRegion(0.0), p=p, q=q), written(p=p, q=q))


def test_the_divergence_grows_with_the_teachers_part_as_its_derivative_says():
  """d/db KL(μ_b ‖ p) = b Var_{μ_b}[log q - log p]: what makes bisection right."""
  parts, h = np.linspace(0.0, 1.0, 21), 1e-4
  assert (np.diff([kl(b) for b in parts], axis=0) > 0).all()
  ratio = log_softmax(Q) - log_softmax(P)
  for b in (0.2, 0.7):
    mu = np.exp(blended(b))
    mean = (mu * ratio).sum(-1, keepdims=True)
    slope = b * (mu * (ratio - mean) ** 2).sum(-1)
    np.testing.assert_allclose((kl(b + h) - kl(b - h)) / (2 * h), slope, rtol=1e-5)


def test_a_token_that_the_teacher_lacks_goes_where_the_region_allows_that():
  """Without it KL(μ_b ‖ p) is at least -log(1 - p(it)) for every b > 0: where that is too much, b is 0."""
  token = 3
  lacking = np.where(np.arange(V) == token, -np.inf, Q)
  got, own = written(TopK(5), TrustRegion(FAR), q=lacking), written(TopK(5))
  least = -np.log1p(-np.exp(own[:, token]))
  assert (least > FAR).any() and ((least > 0) & (least <= FAR)).any()
  stays = np.isfinite(own) & ((np.arange(V) != token) | (least > FAR)[:, None])
  np.testing.assert_array_equal(np.isfinite(got), stays)
  np.testing.assert_array_equal(got[least > FAR], own[least > FAR])


def test_a_region_that_shrinks_is_one_program():
  shrinking, traced = Decoding(rules=(TrustRegion(Ramp(begin=FAR, end=0.0, steps=4)),)), 0

  @functools.partial(jax.jit, static_argnames='decoding')
  def distribution(models, numbers, *, decoding):
    nonlocal traced
    traced += 1
    return decoding.distribution(models, dict(zip(decoding.moving, numbers, strict=True)))

  models = [jnp.asarray(P), jnp.asarray(Q)]
  for step in range(6):
    got = distribution(models, shrinking.numbers_at(step), decoding=shrinking)
    eps = FAR * max(1 - step / 4, 0.0)
    # The ramp's number is of float32.
    np.testing.assert_allclose(jax.nn.log_softmax(got), written(TrustRegion(eps)), atol=1e-5)
  assert traced == 1


@pytest.mark.parametrize('k', [1, 4, V])
def test_a_replacement_is_the_sum_over_both_draws(k):
  p, q = np.exp(log_softmax(P)), np.exp(log_softmax(Q))
  want = np.zeros_like(p)
  for row in range(ROWS):
    best = set(np.argsort(-Q[row])[:k].tolist())
    for proposed in range(V):
      if proposed in best:
        want[row, proposed] += p[row, proposed]
        continue
      for instead in range(V):
        want[row, instead] += p[row, proposed] * q[row, instead]
  np.testing.assert_allclose(np.exp(written(Replaced(k))), want, rtol=1e-12)
  if k == V:
    np.testing.assert_allclose(want, p, rtol=1e-12)


def test_a_replacement_is_never_a_token_that_an_earlier_rule_took_away():
  got = np.exp(written(TopK(5), Replaced(3)))
  kept = np.isfinite(written(TopK(5)))
  mine = np.where(kept, np.exp(log_softmax(P)), 0.0)
  mine /= mine.sum(-1, keepdims=True)
  theirs = np.where(kept, np.exp(log_softmax(Q)), 0.0)
  theirs /= theirs.sum(-1, keepdims=True)
  best = np.argsort(np.argsort(-Q, axis=-1), axis=-1) < 3
  missed = np.where(best, 0.0, mine).sum(-1, keepdims=True)
  np.testing.assert_allclose(got, np.where(best, mine, 0.0) + missed * theirs, atol=1e-13)


@pytest.mark.parametrize(
  'make, words',
  [
    (lambda: TrustRegion(-0.1), 'eps must not be negative, got -0.1'),
    (lambda: TrustRegion(Ramp(begin=0.1, end=-0.1, steps=2)), 'eps must not be negative'),
    (lambda: Replaced(0), 'k must be at least 1, got 0'),
    (lambda: TrustRegion(0.1)(jnp.zeros((1, 3)), [jnp.zeros((1, 3))], {}), "beside='teacher'"),
    (lambda: Replaced(1)(jnp.zeros((1, 3)), [jnp.zeros((1, 3))], {}), "beside='teacher'"),
  ],
)
def test_settings_without_meaning_are_refused(make, words):
  with pytest.raises(ValueError, match=words):
    make()
