"""Supports and rest rules on the field's printed vector (V = 5), also where nothing or everything is kept."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from opd_jax.losses.divergences import ForwardKL, JensenShannon, ReverseKL, TotalVariation
from opd_jax.losses.rest_rules import (
  Centred,
  OutsideMass,
  PerCandidate,
  Renormalised,
  Stopped,
  Tail,
  TeacherOnly,
  Unclosed,
)
from opd_jax.losses.supports import (
  FULL,
  Columns,
  Full,
  SameRank,
  StudentTopK,
  Support,
  TeacherTopK,
  best,
)
from opd_jax.losses.vocab_shard import Target, TileView, VocabShard
from opd_jax.types import ScoreRequest

Z, Z_TEACHER = [2.0, 1, 0, -1, 0.5], [0.2, 2, 1, -2, 0]
FORWARD, HALF, REVERSE = ForwardKL(), JensenShannon(beta=0.5), ReverseKL()
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
  'student': StudentTopK,
  'teacher': TeacherTopK,
  'union': lambda k: TeacherTopK(k) | StudentTopK(k),
}
REST = {'tail': Tail(), 'renorm': Renormalised()}


def closed(entries, rest=REST['tail']):
  return Support(entries=entries, rest=rest)


@pytest.fixture(autouse=True)
def float64():
  with jax.enable_x64(True):
    yield


def value(support, divergence, z=Z, exact_rest=False):
  log_q = jax.nn.log_softmax(jnp.asarray(Z_TEACHER))[None]

  def of(z):
    log_p = jax.nn.log_softmax(z)[None]
    view = TileView(VocabShard((), log_p.shape[-1]), log_p, log_q, Target())
    entries = support.entries.find(view)
    rest = view.outside(entries) if exact_rest else OutsideMass()
    return support.value(
      divergence, jnp.take_along_axis(log_p, entries.ids, axis=-1), entries, rest
    )[0]

  return jax.value_and_grad(of)(jnp.asarray(z, float))


@pytest.mark.parametrize('kind, close', PRINTED)
@pytest.mark.parametrize('exact_rest', [False, True])
def test_the_printed_values_reproduce(kind, close, exact_rest):
  support = closed(MAKE[kind](2), REST[close])
  got = [value(support, each, exact_rest=exact_rest)[0] for each in (FORWARD, HALF, REVERSE)]
  np.testing.assert_allclose(got, PRINTED[kind, close], atol=5.1e-7)


@pytest.mark.parametrize('divergence', GRADIENTS, ids=lambda each: each.name)
@pytest.mark.parametrize('exact_rest', [False, True])
def test_the_printed_gradients_reproduce(divergence, exact_rest):
  _, gradient = value(closed(StudentTopK(2)), divergence, exact_rest=exact_rest)
  np.testing.assert_allclose(gradient, GRADIENTS[divergence], atol=5.1e-7)


@pytest.mark.parametrize('k', [1, 2, 4, 5])
@pytest.mark.parametrize('kind', MAKE)
@pytest.mark.parametrize('divergence', [FORWARD, REVERSE, HALF], ids=lambda each: each.name)
def test_a_closed_support_never_exceeds_the_whole(kind, k, divergence):
  whole = divergence(*(jax.nn.log_softmax(jnp.asarray(z)) for z in (Z, Z_TEACHER)))
  part = value(closed(MAKE[kind](k)), divergence)[0]
  assert part <= whole + 1e-12 and (k < 5 or part == pytest.approx(float(whole)))


def test_an_empty_intersection_is_nothing():
  """The best of either side differ: renormalised, nothing is compared; with a tail, everything is outside."""
  for rest in REST.values():
    got, gradient = value(closed(TeacherTopK(1) & StudentTopK(1), rest), FORWARD)
    assert got == pytest.approx(0, abs=1e-9) and np.abs(gradient).max() < 1e-9


def test_the_stopped_gradient_is_that_of_the_kept_entries():
  """Raw reverse KL adds the gradient of the kept mass; stopped does not (constants of the many-faces study)."""
  top = lambda rest: value(closed(StudentTopK(2), rest), REVERSE)
  p = np.exp(Z) / np.exp(Z).sum()
  kept = np.array([True, True, False, False, False])
  mass = p * (kept - p[kept].sum())
  raw, stopped = top(Unclosed()), top(Stopped())
  np.testing.assert_allclose(raw[1] - stopped[1], mass, atol=1e-12)
  assert raw[0] == pytest.approx(float(stopped[0]))


def test_teacher_only_pulls_the_student_into_the_support():
  gradient = value(closed(TeacherTopK(2), TeacherOnly()), FORWARD)[1]
  p, q = (np.exp(z) / np.exp(z).sum() for z in (Z, Z_TEACHER))
  kept = np.array([False, True, True, False, False])
  np.testing.assert_allclose(gradient, p - kept * q / q[kept].sum(), atol=1e-12)


def test_the_centred_sum_has_the_stopped_gradient_and_is_never_negative():
  """Σ p log(p / q) - p + q on the student's best two; the extra terms take the gradient of the kept mass away."""
  top = lambda rest: value(closed(StudentTopK(2), rest), REVERSE)
  p, q = (np.exp(z) / np.exp(z).sum() for z in (Z, Z_TEACHER))
  got, gradient = top(Centred())
  assert got == pytest.approx((p * np.log(p / q) - p + q)[:2].sum(), rel=1e-12) and got > 0
  np.testing.assert_allclose(gradient, top(Stopped())[1], atol=1e-14)


@pytest.mark.parametrize('weight', ['student', 'teacher', 'none'])
@pytest.mark.parametrize('kind', MAKE)
def test_a_candidate_is_a_policy_gradient_of_its_own(kind, weight):
  """-Σ weight (log q - log p) ∇ log p over the entries, in numpy."""
  entries = MAKE[kind](2)
  kept = entries_of(entries)
  p, q = (np.exp(z) / np.exp(z).sum() for z in (Z, Z_TEACHER))
  weights = {'student': p / p[kept].sum(), 'teacher': q / q[kept].sum(), 'none': np.ones(5)}[weight]
  pull = np.zeros(5)
  pull[kept] = (weights * np.log(q / p))[kept]
  got, gradient = value(closed(entries, PerCandidate(weight=weight)), REVERSE)
  assert got == pytest.approx(-pull.sum(), rel=1e-12)
  np.testing.assert_allclose(gradient, p * pull.sum() - pull, atol=1e-13)


def test_candidates_in_an_empty_intersection_are_nothing():
  for weight in ('student', 'teacher', 'none'):
    entries = TeacherTopK(1) & StudentTopK(1)
    got, gradient = value(closed(entries, PerCandidate(weight=weight)), REVERSE)
    assert got == 0 and not np.asarray(gradient).any()


def test_ranks_forget_which_token_they_are_of():
  """Of the student 0 1 4 …, of the teacher 1 2 0 …; any order of the teacher's logits gives the same."""
  p, q = (np.sort(np.exp(z) / np.exp(z).sum())[::-1] for z in (Z, Z_TEACHER))
  got, _ = value(closed(SameRank(3), Unclosed()), TotalVariation())
  assert got == pytest.approx(0.5 * np.abs(p - q)[:3].sum(), rel=1e-12)
  assert value(closed(SameRank(5), Unclosed()), TotalVariation(), z=Z_TEACHER[::-1])[0] < 1e-15


def test_supports_say_what_they_ask_for():
  assert FULL.request == Columns((1,)).request == ScoreRequest(hidden=True)
  assert (TeacherTopK(4) | StudentTopK(3)).request == ScoreRequest(top_k=4, at_student_top_k=3)
  assert (TeacherTopK(4) & TeacherTopK(2)).request == ScoreRequest(top_k=4)
  assert closed(TeacherTopK(2) | Columns((1,))).request == ScoreRequest(top_k=2, hidden=True)


def entries_of(entries):
  """The ids that are compared on the printed vector, in their order."""
  log_p, log_q = (jax.nn.log_softmax(jnp.asarray(z))[None] for z in (Z, Z_TEACHER))
  found = entries.find(TileView(VocabShard((), 5), log_p, log_q, Target()))
  ids, valid = found.ids[0], found.valid[0]
  np.testing.assert_allclose(found.log_q[0][valid], log_q[0][ids[valid]])
  return ids[valid].tolist()


def test_unions_and_intersections_compose_as_sets_do():
  """The student's order is 0 1 4 2 3, the teacher's 1 2 0 4 3; a union has every entry once."""
  student, teacher, columns = StudentTopK(3), TeacherTopK(3), Columns((3, 1))
  assert entries_of(student) == [0, 1, 4] and entries_of(teacher) == [1, 2, 0]
  assert entries_of(teacher | student) == [1, 2, 0, 4]
  assert entries_of(student & teacher) == [0, 1]
  assert entries_of(columns | teacher | student) == [3, 1, 2, 0, 4]
  assert entries_of((columns | student) & teacher) == [1, 0]
  assert entries_of(columns | student & teacher) == [3, 1, 0]
  assert entries_of(student & columns | TeacherTopK(1)) == [1]
  assert entries_of(student & TeacherTopK(2) & columns) == [1]
  assert entries_of(Columns((3,)) & student) == []
  assert entries_of(best(3, of='student')) == [0, 1, 4]
  assert entries_of(best(3, of='teacher')) == [1, 2, 0]
  assert entries_of(best(3, of='both')) == [0, 1] and {*entries_of(best(3, of='either'))} == {
    0,
    1,
    2,
    4,
  }


@pytest.mark.parametrize(
  'make, words',
  [
    (lambda: TeacherTopK(0), 'TeacherTopK: at least one entry'),
    (lambda: StudentTopK(-1), 'StudentTopK: at least one entry'),
    (lambda: Columns(()), 'at least one entry'),
    (lambda: SameRank(0), 'SameRank: at least one entry'),
    (lambda: closed(SameRank(2), Tail()), 'nothing is outside of both'),
    (lambda: best(2, of='all'), "'either', 'student', 'teacher'.*got 'all'"),
    (lambda: PerCandidate(weight='judge'), "'student', 'teacher' or 'none', got 'judge'"),
    (lambda: Columns((1, 1)), 'each once'),
    (lambda: Support(entries=TeacherTopK(2)), 'Say how the rest is closed'),
    (lambda: Support(entries=Full(), rest=Tail()), 'only Full'),
    (lambda: entries_of(Full() | TeacherTopK(1)), 'every entry is compared already'),
    (lambda: entries_of(TeacherTopK(1) & Full()), 'every entry is compared already'),
  ],
)
def test_supports_refuse_what_means_nothing(make, words):
  with pytest.raises(ValueError, match=words):
    make()
