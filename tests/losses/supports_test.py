"""Supports and closings on the field's printed vector (V = 5), and what they do when nothing or everything is kept."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from opd_jax.losses import divergences, supports
from opd_jax.losses.vocab_shard import Target, TileView, VocabShard

Z, Z_TEACHER = [2.0, 1, 0, -1, 0.5], [0.2, 2, 1, -2, 0]
FORWARD, HALF, REVERSE = (
  divergences.forward_kl(),
  divergences.jensen_shannon(beta=0.5),
  divergences.reverse_kl(),
)
PRINTED = {
  ('student', 'tail'): (0.543739, 0.141806, 0.698440),
  ('student', 'renorm'): (0.763101, 0.189793, 0.886680),
  ('teacher', 'tail'): (0.600809, 0.148224, 0.657000),
  ('teacher', 'renorm'): (0.0, 0.0, 0.0),
  ('union', 'tail'): (0.633787, 0.160757, 0.766805),
  ('union', 'renorm'): (0.678382, 0.177460, 0.882412),
}
GRADIENTS = {
  HALF: [0.114200, -0.081307, -0.010904, -0.004011, -0.017977],
  REVERSE: [0.591157, -0.362472, -0.075809, -0.027888, -0.124987],
}
MAKE = {
  'student': supports.student_top_k,
  'teacher': supports.teacher_top_k,
  'union': supports.union_top_k,
}


@pytest.fixture(autouse=True)
def float64():
  with jax.enable_x64(True):
    yield


def value(support, divergence, z=Z, exact_rest=False):
  log_q = jax.nn.log_softmax(jnp.asarray(Z_TEACHER))[None]

  def of(z):
    log_p = jax.nn.log_softmax(z)[None]
    reader = TileView(VocabShard((), log_p.shape[-1]), log_p, log_q, Target())
    entries = support.entries(reader)
    rest = reader.rest(entries) if exact_rest else supports.OutsideMass()
    return support.value(
      divergence, jnp.take_along_axis(log_p, entries.ids, axis=-1), entries, rest
    )[0]

  return jax.value_and_grad(of)(jnp.asarray(z, float))


@pytest.mark.parametrize('kind, close', PRINTED)
@pytest.mark.parametrize('exact_rest', [False, True])
def test_the_printed_values_reproduce(kind, close, exact_rest):
  support = MAKE[kind](2, close=getattr(supports, close)())
  got = [value(support, each, exact_rest=exact_rest)[0] for each in (FORWARD, HALF, REVERSE)]
  np.testing.assert_allclose(got, PRINTED[kind, close], atol=5.1e-7)


@pytest.mark.parametrize('divergence', GRADIENTS, ids=lambda each: each.name)
@pytest.mark.parametrize('exact_rest', [False, True])
def test_the_printed_gradients_reproduce(divergence, exact_rest):
  _, slope = value(
    supports.student_top_k(2, close=supports.tail()), divergence, exact_rest=exact_rest
  )
  np.testing.assert_allclose(slope, GRADIENTS[divergence], atol=5.1e-7)


@pytest.mark.parametrize('k', [1, 2, 4, 5])
@pytest.mark.parametrize('kind', MAKE)
@pytest.mark.parametrize('divergence', [FORWARD, REVERSE, HALF], ids=lambda each: each.name)
def test_a_closed_support_never_exceeds_the_whole(kind, k, divergence):
  whole = divergence(*(jax.nn.log_softmax(jnp.asarray(z)) for z in (Z, Z_TEACHER)))
  part = value(MAKE[kind](k, close=supports.tail()), divergence)[0]
  assert part <= whole + 1e-12 and (k < 5 or part == pytest.approx(float(whole)))


def test_an_empty_intersection_is_nothing():
  """The best of either side differ: renormalised, nothing is compared; with a tail, everything is outside."""
  for close in (supports.renorm(), supports.tail()):
    got, slope = value(supports.intersection_top_k(1, close=close), FORWARD)
    assert got == pytest.approx(0, abs=1e-9) and np.abs(slope).max() < 1e-9


def test_the_stopped_gradient_is_that_of_the_kept_entries():
  """Raw reverse KL adds the gradient of the kept mass; stopped does not (constants of the many-faces study)."""
  top = lambda close: value(supports.student_top_k(2, close=close), REVERSE)
  p = np.exp(Z) / np.exp(Z).sum()
  kept = np.array([True, True, False, False, False])
  mass = p * (kept - p[kept].sum())
  raw, stopped = top(supports.raw()), top(supports.stopped())
  np.testing.assert_allclose(raw[1] - stopped[1], mass, atol=1e-12)
  assert raw[0] == pytest.approx(float(stopped[0]))


def test_teacher_only_pulls_the_student_into_the_support():
  slope = value(supports.teacher_top_k(2, close=supports.teacher_only()), FORWARD)[1]
  p, q = (np.exp(z) / np.exp(z).sum() for z in (Z, Z_TEACHER))
  kept = np.array([False, True, True, False, False])
  np.testing.assert_allclose(slope, p - kept * q / q[kept].sum(), atol=1e-12)


def test_supports_say_what_they_ask_for_and_refuse_nothing():
  assert supports.full().asks == supports.Asks(everything=True)
  assert supports.union_top_k(4, close=supports.tail()).asks == supports.Asks(
    top_k=4, at_student_top_k=4
  )
  with pytest.raises(ValueError, match='at least one entry'):
    supports.teacher_top_k(0, close=supports.tail())
  with pytest.raises(ValueError, match='at least one entry'):
    supports.columns((), close=supports.tail())
