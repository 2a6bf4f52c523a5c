"""TOPD against its formula on forks made by hand: the plan, its orientation, who is spared, and what reduces to OPD."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from evidence_worlds import MASK, ROWS, V, ours, same, weigh, with_forks

from opd_jax.forks import Forks
from opd_jax.losses.transport import cosine_cost, sinkhorn
from opd_jax.methods.opd import opd
from opd_jax.methods.topd import VARIANTS, topd
from opd_jax.types import STUDENT, TEACHER

POINTS = ((0, 2), (0, 5), (3, 1), (4, 0), (5, 1))  # row and position
LENGTHS = (
  (4, 4),
  (4, 3),
  (2, 4),
  (3, 1),
  (4, 2),
)  # tokens of the student's and of the teacher's continuation
TOKENS, EPS, GUIDANCE = (
  6,
  0.5,
  0.3,
)  # the second point's continuations could reach beyond the columns
SETTINGS = {'tokens': TOKENS, 'eps': EPS, 'iterations': 300, 'guidance': GUIDANCE}


def evidence_of(method):
  """Evidence with the forks of this file, cut to their lengths."""
  count = len(POINTS)
  forks = Forks(
    row=np.repeat([row for row, _ in POINTS], 2).astype(np.int32),
    at=np.repeat([at for _, at in POINTS], 2).astype(np.int32),
    first=np.full(2 * count, -1, np.int32),
    writer=np.tile([STUDENT, TEACHER], count).astype(np.int32),
  )
  evidence = with_forks(method, forks, length=4)
  mask = np.array(evidence.mask)
  for number, length in enumerate(np.ravel(LENGTHS)):
    mask[ROWS + number, forks.at[number] + length :] = False
  return evidence._replace(mask=mask)


def plan_of(cost):
  """The plan with uniform marginals, by matrix scaling to the end."""
  kernel = np.exp(-cost / EPS)
  rows, columns = cost.shape
  v = np.ones(columns)
  for _ in range(2000):
    u = 1 / rows / (kernel @ v)
    v = 1 / columns / (kernel.T @ u)
  return u[:, None] * kernel * v


def targets(evidence):
  """Of every point with both futures: its cost, and what each token of the vocabulary weighs at every column."""
  states = np.asarray(evidence.scores['teacher'].layers)[:, :, 0]
  found = []
  for number, ((_, at), (mine, theirs)) in enumerate(zip(POINTS, LENGTHS, strict=True)):
    one, other = ROWS + 2 * number, ROWS + 2 * number + 1
    mine, theirs = mine - 1, theirs - 1  # nothing has read the last token
    if not mine or not theirs:
      continue
    cost = np.zeros((mine, theirs))
    for i in range(mine):
      for j in range(theirs):
        a, b = states[one, at + i + 1], states[other, at + j + 1]
        cost[i, j] = 1 - a @ b / np.linalg.norm(a) / np.linalg.norm(b)
    plan = plan_of(cost)
    weight = np.zeros((*evidence.mask.shape, V))
    for i in range(mine):
      for j in range(theirs):
        token = evidence.rollout.response[other, at + j]
        weight[one, at + i, token] += plan[i, j] / plan[i].sum() / mine
    found.append(((plan * cost).sum(), weight))
  return found


def dense(term):
  """coefficient · weights by token of the vocabulary: all that the term's loss depends on."""
  weight = np.asarray(term.coefficient)[..., None] * np.asarray(term.inputs['weights'])
  chosen = np.asarray(term.inputs['ids'])[..., None] == np.arange(V)
  return (weight[..., None] * chosen).sum(axis=-2)


@pytest.mark.parametrize('spared', [0.0, 0.29, 0.6])
def test_it_is_the_published_formula(spared):
  method = topd(spared=spared, **SETTINGS)
  evidence = evidence_of(method)
  plain, guided = weigh(method)(evidence)
  points = sorted(targets(evidence), key=lambda point: point[0])
  assert len(points) == 4  # one teacher wrote a single token
  taught = points[int(spared * 4) :]
  want = GUIDANCE * sum(weight for _, weight in taught) / len(taught)
  np.testing.assert_allclose(dense(guided), want, rtol=0, atol=1e-12)
  np.testing.assert_allclose(dense(guided).sum(), GUIDANCE, rtol=1e-12)
  gap = np.asarray(evidence.teacher.logp - evidence.student.logp)
  own = np.where(MASK, gap[:ROWS, : MASK.shape[1]], 0.0) / MASK.sum()
  np.testing.assert_allclose(plain.coefficient[:ROWS, : MASK.shape[1]], own, rtol=0, atol=1e-15)
  assert not np.asarray(plain.coefficient)[ROWS:].any()


def test_the_teachers_permutation_of_the_students_future_teaches_the_student_its_own_tokens():
  """A row of the plan is a token of the student: read the other way, a turn by one would teach the wrong tokens."""
  method = topd(spared=0.0, **{**SETTINGS, 'eps': 0.01, 'points': 1})
  evidence = evidence_of(method)
  (row, at), turn = (ROWS, POINTS[0][1]), np.array([1, 2, 0])
  response = np.array(evidence.rollout.response)
  layers = np.array(evidence.scores['teacher'].layers)
  layers[row, at + 1 : at + 4, 0] = np.eye(3, V)
  response[row, at : at + 3] = [7, 8, 9]
  response[row + 1, at : at + 3] = response[row, at : at + 3][turn]
  layers[row + 1, at + 1 : at + 4] = layers[row, at + 1 : at + 4][turn]
  scores = {**evidence.scores, 'teacher': evidence.scores['teacher']._replace(layers=layers)}
  rollout = evidence.rollout._replace(response=response)
  guided = weigh(method)(evidence._replace(scores=scores, rollout=rollout))[1]
  got = dense(guided)[row, at : at + 3]
  np.testing.assert_allclose(got / got.sum(axis=1, keepdims=True), np.eye(V)[[7, 8, 9]], atol=1e-12)


def test_a_plan_has_uniform_marginals_and_identical_futures_a_diagonal_one():
  rng = np.random.RandomState(0)
  one, other = rng.randn(5, 8), rng.randn(7, 8)
  rows, columns = np.arange(5) != 4, np.arange(7) < 5
  plan = np.asarray(sinkhorn(cosine_cost(one, other), rows, columns, eps=0.2, iterations=200))
  np.testing.assert_allclose(plan.sum(axis=1), np.where(rows, 1 / 4, 0), rtol=0, atol=1e-15)
  np.testing.assert_allclose(plan.sum(axis=0), np.where(columns, 1 / 5, 0), rtol=0, atol=1e-12)
  every = np.ones(6, bool)
  same_plan = sinkhorn(cosine_cost(np.eye(6), np.eye(6)), every, every, eps=0.02, iterations=5)
  np.testing.assert_allclose(same_plan, np.eye(6) / 6, rtol=0, atol=1e-15)
  nothing = sinkhorn(cosine_cost(one, other), rows & False, columns, eps=0.2, iterations=5)
  assert not np.asarray(nothing).any()


def test_both_models_go_on_where_the_students_token_is_worst():
  method = topd(points=2, tokens=3)
  evidence = evidence_of(method)
  assert method.forks is not None and method.forks.writers == ('student', 'teacher')
  plan = method.forks.plan(evidence._replace(forks=None))
  loss = np.asarray(evidence.student.logp - evidence.teacher.logp)
  loss = np.where(evidence.mask, loss, -np.inf)
  for row in range(ROWS):
    worst = [int(at) for at in np.argsort(-loss[row])[:2] if np.isfinite(loss[row, at])]
    here = np.asarray(plan.row) == row
    assert np.asarray(plan.at)[here].tolist() == np.repeat(worst, 2).tolist()
    assert np.asarray(plan.writer)[here].tolist() == [STUDENT, TEACHER] * len(worst)
  assert (np.asarray(plan.first) == -1).all()


def test_controls_teach_as_many_points_and_other_ones():
  evidence = evidence_of(topd(**SETTINGS))
  picks, program = [], weigh(topd(**VARIANTS['spared at random'], **SETTINGS))
  for key in range(6):
    guided = program(evidence._replace(key=jax.random.key(key)))[1]
    rows = np.asarray(guided.coefficient).any(axis=1)
    assert rows.sum() == 3  # of four, as by cost
    picks.append(tuple(np.flatnonzero(rows)))
  assert len(set(picks)) > 1
  drawn = topd(points=2, tokens=3, control='points')
  assert drawn.forks is not None
  plans = [
    drawn.forks.plan(evidence._replace(forks=None, key=jax.random.key(key))) for key in range(4)
  ]
  assert len({tuple(np.asarray(plan.at).tolist()) for plan in plans}) > 1


def test_without_guidance_it_is_opd():
  same(ours(topd(guidance=0.0)), ours(opd()))
  assert topd(guidance=0.0).forks is None
  bare = topd(**SETTINGS)
  nothing = evidence_of(bare)
  guided = weigh(bare)(nothing._replace(mask=jnp.zeros_like(nothing.mask)))[1]
  assert not np.asarray(guided.coefficient).any() and np.isfinite(guided.inputs['weights']).all()


@pytest.mark.parametrize(
  'settings, words',
  [
    ({'tokens': 1}, 'tokens 2'),
    ({'spared': 1.0}, 'spared in'),
    ({'eps': 0.0}, 'eps above 0'),
    ({'control': 'tokens'}, "control is None, 'points' or 'spared'"),
  ],
)
def test_what_makes_no_sense_is_refused(settings, words):
  with pytest.raises(ValueError, match=words):
    topd(**settings)
