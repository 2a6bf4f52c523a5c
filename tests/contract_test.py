"""The laws of a method, over every method and variant found: what `weigh` may depend on, and what on it."""

import functools
from pathlib import Path
from typing import Any, NamedTuple

import evidence_worlds as worlds
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from opd_jax.claims import Unbiased, to_teacher
from opd_jax.losses.terms import DivergenceTerm
from opd_jax.method import Evidence, Method
from opd_jax.method_reads import judges_read
from opd_jax.methods import discover

VARIANTS = {
  f'{entry.name} {variant}'.strip(): functools.partial(entry.make, **settings)
  for entry in discover()
  for variant, settings in {'': {}, **entry.variants}.items()
}
ALL = pytest.mark.parametrize('name', VARIANTS)

V = 64  # as many as a method may ask the best of
STUDENT, TEACHER, REFERENCE = 1.5 * np.random.RandomState(5).randn(3, worlds.ROWS, worlds.R, V)
RESPONSE = np.random.RandomState(6).randint(0, V, (worlds.ROWS, worlds.R)).astype(np.int32)
TEACHER[0, 0, RESPONSE[0, 0]] += 14.0  # a token of which the teacher is all but certain
UNKNOWN = {'teacher': [(4, 1), (4, 3), (7, 0), (7, 1)], 'reference': [(0, 2)]}


@pytest.fixture(autouse=True)
def float64():
  with jax.enable_x64(True):
    yield


class Prepared(NamedTuple):
  """A method, its function as one program, and evidence with holes in what judges know."""

  method: Method
  weigh: Any
  evidence: Evidence


def evidence_of(method: Method, *, student=STUDENT, teacher=TEACHER, unknown=UNKNOWN):
  """Evidence of this file's batch, and the targets of its judges."""
  evidence, targets = worlds.from_logits(student, teacher, REFERENCE, RESPONSE, method)
  scores = {}
  for name, each in evidence.scores.items():
    known = np.ones(RESPONSE.shape, bool)
    known[tuple(np.array(unknown.get(name, np.zeros((0, 2), int))).T)] = False
    scores[name] = each._replace(known=jnp.asarray(known))
  return remade(evidence, method, scores=scores), targets


def remade(evidence: Evidence, method: Method, *, rollout=None, scores=None, measures=None):
  """The same with other parts; its mask follows from them."""
  return Evidence.of(
    rollout or evidence.rollout,
    scores or evidence.scores,
    method.needs,
    measures=evidence.measures if measures is None else measures,
    memory=evidence.memory,
    step=evidence.step,
    key=evidence.key,
  )


@functools.cache
def prepared(name: str) -> Prepared:
  method = VARIANTS[name]()
  return Prepared(method, worlds.weigh(method), evidence_of(method)[0])


def effect(terms) -> list[np.ndarray]:
  """What terms come to: coefficients, and inputs where a coefficient is not zero."""
  found = []
  for _, coefficient, inputs in jax.device_get(terms):
    counts = coefficient != 0
    found.append(coefficient)
    for value in inputs.values():
      found.append(np.where(counts.reshape(counts.shape + (1,) * (value.ndim - 2)), value, 0))
  return found


def weighed(name: str, evidence: Evidence | None = None) -> list[np.ndarray]:
  one = prepared(name)
  return effect(one.weigh(one.evidence if evidence is None else evidence))


def compared(one: Prepared) -> np.ndarray:
  """Where a term compares with the teacher's distribution; everywhere, where no term does so."""
  where = [
    np.asarray(coefficient) != 0
    for term, coefficient, _ in one.weigh(one.evidence)
    if isinstance(term, DivergenceTerm) and term.of == 'teacher'
  ]
  return np.any(where, axis=0) if where else np.ones(RESPONSE.shape, bool)


def moved(before, after) -> np.ndarray:
  """Where two effects differ, [B, R]."""
  gaps = [
    np.abs(one - other).reshape(*RESPONSE.shape, -1).max(axis=-1)
    for one, other in zip(before, after, strict=True)
  ]
  return np.max(gaps, axis=0) > 1e-12


def everywhere_same(before, after, tolerance=0.0) -> None:
  for one, other in zip(before, after, strict=True):
    np.testing.assert_allclose(one, other, rtol=tolerance, atol=tolerance)


def test_every_method_has_a_test_file_of_its_own():
  files = {path.name for path in (Path(__file__).parent / 'methods').glob('*_test.py')}
  assert files == {f'{entry.name}_test.py' for entry in discover()}


@ALL
def test_weights_are_finite_and_the_same_every_time(name):
  found = weighed(name)
  assert all(np.isfinite(x).all() for x in found) and any(x.any() for x in found)
  everywhere_same(found, weighed(name))


@ALL
def test_rows_are_a_set(name):
  """Another order of the same rows, with their groups, is the same batch; not asked of what draws by position."""
  evidence = prepared(name).evidence
  before = weighed(name)
  if moved(before, weighed(name, evidence._replace(key=jax.random.key(1)))).any():
    pytest.skip('its weights are drawn: another key gives others')
  order = np.array([5, 3, 0, 7, 1, 6, 2, 4])
  turn = lambda tree: jax.tree.map(lambda x: np.asarray(x)[order], tree)
  turned = evidence._replace(
    rollout=turn(evidence.rollout),
    scores=turn(evidence.scores),
    measures=turn(evidence.measures),
    mask=turn(evidence.mask),
  )
  everywhere_same([x[order] for x in before], weighed(name, turned), 1e-13)


@ALL
def test_what_does_not_count_or_is_not_known_changes_nothing(name):
  """NaN and infinity outside the mask, and where a judge has no opinion."""
  method, _, evidence = prepared(name)
  written = np.asarray(evidence.rollout.mask)

  def soiled(tree, mask):
    junk = np.where(np.arange(worlds.R) % 2, np.nan, np.inf)
    inside = lambda x: np.asarray(mask).reshape(mask.shape + (1,) * (x.ndim - 2))
    dirty = lambda x: np.where(inside(x), x, junk.reshape(junk.shape + (1,) * (x.ndim - 2)))
    whole = lambda x: np.where(inside(x), x, V - 1)
    return jax.tree.map(
      lambda x: (
        np.asarray(x)
        if np.ndim(x) < 2 or x.dtype == bool
        else (dirty if np.issubdtype(x.dtype, np.floating) else whole)(np.asarray(x))
      ),
      tree,
    )

  rollout = soiled(evidence.rollout._replace(prompt=None, writer=None), written)
  whole = evidence.rollout
  rollout = rollout._replace(prompt=whole.prompt, writer=whole.writer)
  scores = {
    judge: soiled(each, written & np.asarray(each.known)) for judge, each in evidence.scores.items()
  }
  measures = soiled(dict(evidence.measures), np.asarray(evidence.mask))
  dirty = remade(evidence, method, rollout=rollout, scores=scores, measures=measures)
  everywhere_same(weighed(name), weighed(name, dirty))


@ALL
def test_an_empty_row_weighs_nothing_and_so_does_an_empty_batch(name):
  method, _, evidence = prepared(name)
  empty = worlds.LENGTHS.index(0)
  coefficients = [term.coefficient for term in prepared(name).weigh(evidence)]
  assert all(not x[empty].any() for x in coefficients)
  assert all(not np.asarray(x)[~np.asarray(evidence.rollout.mask)].any() for x in coefficients)
  nothing = evidence.rollout._replace(mask=np.zeros(RESPONSE.shape, bool))
  terms = prepared(name).weigh(remade(evidence, method, rollout=nothing))
  assert all(not np.asarray(term.coefficient).any() for term in terms)


def listens(name: str) -> np.ndarray:
  """[N, B, R]: where weights move when what judges say of the n-th token that counts moves.

  Taken as differences, since a choice of tokens has no derivative; several sizes, since a choice may need a push.
  """
  evidence = prepared(name).evidence
  before, found = weighed(name), []
  for row, at in np.argwhere(np.asarray(evidence.mask)):
    heard = np.zeros(RESPONSE.shape, bool)
    for size in (-2.0, 0.5, 12.0):
      shift = np.zeros(RESPONSE.shape)
      shift[row, at] = size
      by_shift = lambda x, shift=shift: (
        x + shift.reshape(shift.shape + (1,) * (x.ndim - 2))
        if np.issubdtype(x.dtype, np.floating)
        else x
      )
      scores = {
        judge: each if judge == 'student' else jax.tree.map(by_shift, each)
        for judge, each in evidence.scores.items()
      }
      measures = jax.tree.map(by_shift, dict(evidence.measures))
      heard |= moved(before, weighed(name, evidence._replace(scores=scores, measures=measures)))
    found.append(heard)
  return np.array(found)


@ALL
def test_a_judge_is_heard_where_it_was_asked(name):
  """Alignment: one logit of the teacher moves its own position, and no other unless weights look across positions."""
  method, _, evidence = prepared(name)
  heard = listens(name)
  own = np.zeros_like(heard)
  own[(np.arange(len(heard)), *np.argwhere(np.asarray(evidence.mask)).T)] = True
  across = (heard & ~own).any()
  terms = prepared(name).weigh(evidence)
  compares = any(
    isinstance(each.term, DivergenceTerm) for each in terms
  )  # heard in the vocabulary pass
  assert (heard & own).any() or compares or not across, (
    'a judge is heard elsewhere, and never where it was asked'
  )
  if across:
    return

  def gradient_of(teacher):
    evidence, targets = evidence_of(method, teacher=teacher)
    terms = prepared(name).weigh(evidence)
    return np.asarray(worlds.through_the_pass(STUDENT, RESPONSE, targets, terms)[1])

  before = gradient_of(TEACHER)
  sizes, listening = np.abs(before).max(axis=-1), (heard & own).any(axis=0)
  sizes = (
    np.where(listening, sizes, 0.0) if listening.any() else sizes
  )  # some listen in some rows only
  sizes = np.where(compared(prepared(name)), sizes, 0.0)
  row, at = np.unravel_index(sizes.argmax(), sizes.shape)
  changed = np.zeros(RESPONSE.shape, bool)
  for push in (
    -12.0,
    12.0,
  ):  # powers of a small probability hide a small push, bounds one of the two
    pushed = TEACHER.copy()
    pushed[row, at, RESPONSE[row, at]] += push
    changed |= moved([before], [gradient_of(pushed)])
  assert np.argwhere(changed).tolist() == (
    [[int(row), int(at)]] if 'teacher' in judges_read(method) else []
  )


def claims_the_teacher(name: str) -> bool:
  """Whether a method has an exact gradient whose optimum is the teacher, and compares with the teacher at all."""
  method = VARIANTS[name]()
  claims = isinstance(method.claim, Unbiased) and method.claim.optimum is to_teacher
  return claims and 'teacher' in judges_read(method)


@pytest.mark.parametrize('name', [*filter(claims_the_teacher, VARIANTS)])
def test_a_student_that_is_its_teacher_stays(name):
  evidence, targets = evidence_of(prepared(name).method, student=TEACHER)
  terms = prepared(name).weigh(evidence)
  gradient = worlds.through_the_pass(TEACHER, RESPONSE, targets, terms)[1]
  np.testing.assert_allclose(gradient, 0.0, rtol=0, atol=1e-14)
