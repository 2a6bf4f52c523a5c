"""OGLS: its loss beside the paper's formula, the printed test vectors, and a steered judge beside sums of logits."""

import evidence_worlds as worlds
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from opd_jax.judges.combining import times
from opd_jax.losses import vocabulary
from opd_jax.losses.divergences import ClampedPerEntry, ForwardKL, ReverseKL
from opd_jax.losses.normalisers import per_token
from opd_jax.losses.supports import FULL
from opd_jax.losses.terms import DivergenceTerm
from opd_jax.losses.vocab_shard import Target
from opd_jax.methods import ogls
from opd_jax.ramps import Ramp
from opd_jax.sharding import mesh_layout

STUDENT = np.array([2, 1, 0, -1, 0.5])
TEACHER = np.array([0.2, 2, 1, -2, 0])


@pytest.fixture(autouse=True)
def float64():
  with jax.enable_x64(True):
    yield


def softmax(z):
  e = np.exp(z - z.max(axis=-1, keepdims=True))
  return e / e.sum(axis=-1, keepdims=True)


def reverse_kl(student, teacher, weight):
  """Σ weight · KL(p ‖ q) and its gradient p (log(p / q) - KL), position by position."""
  p, gap = softmax(student), np.log(softmax(student)) - np.log(softmax(teacher))
  value = (p * gap).sum(axis=-1)
  return (weight * value).sum(), weight[..., None] * p * (gap - value[..., None])


def test_only_failed_responses_are_taught_up_to_their_first_tokens():
  failed = (np.array(worlds.REWARDS) <= 0)[:, None] & worlds.MASK
  for first in (None, 3):
    counts = failed & (np.arange(worlds.R) < (first or worlds.R))
    want = reverse_kl(worlds.STUDENT_LOGITS, worlds.TEACHER_LOGITS, counts / counts.sum())
    got = worlds.ours(ogls.ogls(bound=None, first=first))
    np.testing.assert_allclose(got[0], want[0], rtol=1e-10)
    np.testing.assert_allclose(got[1], want[1], atol=1e-10)


def test_the_clamp_on_both_sides_is_that_of_the_printed_vector():
  clamped = ClampedPerEntry(inner=ForwardKL(), max=0.05, min=-0.05)
  loss = lambda z: clamped(jax.nn.log_softmax(z), jax.nn.log_softmax(jnp.asarray(TEACHER)))
  value, gradient = jax.value_and_grad(loss)(jnp.asarray(STUDENT))
  np.testing.assert_allclose(value, 0.003726, atol=1e-6)
  want = [0.051285, 0.018867, 0.006941, -0.008305, -0.068787]
  np.testing.assert_allclose(gradient, want, atol=1e-6)


@pytest.mark.parametrize(
  ('strength', 'want'),
  [
    (1.0, [0.255848, 0.569399, 0.127050, 0.009436, 0.038267]),
    (3.0, [0.020227, 0.904167, 0.074219, 0.000274, 0.001113]),
  ],
)
def test_steering_is_that_of_the_printed_vector(strength, want):
  bare, right, wrong = np.array([[1.8, 1.1, 0.1, -1, 0.4], [1, 2, 0.5, -2, 0], [1.5, 1, 0, -1, 1]])
  z = sum(
    times(np.array([factor]), part[None, None], absent=False)
    for factor, part in ((1.0, bare), (strength, right), (-strength, wrong))
  )
  np.testing.assert_allclose(softmax(np.asarray(z)[0, 0]), want, atol=1e-6)


def through_the_pass(student, states, head):
  """Loss and gradient of the mean reverse KL to a judge with these states and this head."""
  term = DivergenceTerm(divergence=ReverseKL(), support=FULL)
  weighted = (term(jnp.asarray(per_token(jnp.ones(student.shape[:2], bool)))),)
  targets = {'teacher': Target(hidden=states, head=head)}
  response = jnp.zeros(student.shape[:2], jnp.int32)
  eye = jnp.eye(student.shape[-1])

  def loss(logits):
    return vocabulary.weighted_sum(logits, eye, response, targets, weighted, layout=mesh_layout())[
      0
    ]

  return jax.value_and_grad(loss)(jnp.asarray(student))


def test_means_over_as_many_siblings_as_a_row_has_pass_through_one_head():
  """Rows with other numbers of right and wrong siblings: sums of states against logits that numpy sums."""
  rng = np.random.default_rng(0)
  rows, length, width, size = 3, 4, 5, 7
  states = rng.standard_normal((7, rows, length, width))  # bare, three right, three wrong
  head, student = rng.standard_normal((width, size)), rng.standard_normal((rows, length, size))
  right = np.array([[1, 0, 0], [1, 1, 1], [0, 1, 1]])  # which row has which
  wrong = np.array([[1, 1, 1], [1, 0, 0], [0, 0, 1]])
  strength = Ramp(begin=0.0, end=3.0, steps=4).at(3)
  factors = np.concatenate(
    [
      np.ones((1, rows)),
      strength * (right / right.sum(axis=1, keepdims=True)).T,
      -strength * (wrong / wrong.sum(axis=1, keepdims=True)).T,
    ]
  )
  ours = sum(times(f, h, absent=False) for f, h in zip(factors, states, strict=True))
  logits = states @ head
  teacher = np.empty((rows, length, size))
  for row in range(rows):
    plus = np.mean([logits[1 + g, row] for g in range(3) if right[row, g]], axis=0)
    minus = np.mean([logits[4 + g, row] for g in range(3) if wrong[row, g]], axis=0)
    teacher[row] = logits[0, row] + strength * (plus - minus)
  want = reverse_kl(student, teacher, np.full((rows, length), 1 / (rows * length)))
  got = through_the_pass(student, ours, jnp.asarray(head))
  np.testing.assert_allclose(got[0], want[0], rtol=1e-10)
  np.testing.assert_allclose(got[1], want[1], atol=1e-10)


def test_a_trust_region_that_moves_is_a_mixture_of_logits_under_two_heads():
  rng = np.random.default_rng(1)
  still, live = rng.standard_normal((2, 2, 3, 5))
  heads, student = rng.standard_normal((2, 5, 7)), rng.standard_normal((2, 3, 7))
  for step in (0, 1, 2, 9):
    rate = Ramp(begin=0.05, end=0.8, steps=3).at(step)
    states = jnp.concatenate(
      [
        times(np.full(2, 1 - rate), still, absent=False),
        times(np.full(2, rate), live, absent=False),
      ],
      axis=-1,
    )
    teacher = (1 - rate) * still @ heads[0] + rate * live @ heads[1]
    want = reverse_kl(student, teacher, np.full((2, 3), 1 / 6))
    got = through_the_pass(student, states, jnp.asarray(np.concatenate(heads)))
    np.testing.assert_allclose(got[0], want[0], rtol=1e-10)
    np.testing.assert_allclose(got[1], want[1], atol=1e-10)


def test_a_bound_without_meaning_is_refused():
  with pytest.raises(ValueError, match='bound must be above 0'):
    ogls.ogls(bound=0.0)
