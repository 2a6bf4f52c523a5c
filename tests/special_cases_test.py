"""Ends at which one method is another, or is nothing: what the papers say of them, over the methods' own weights."""

import dataclasses

import evidence_worlds as worlds
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from evidence_worlds import MASK, REFERENCE_LOGITS, RESPONSE, STUDENT_LOGITS, TEACHER_LOGITS, K, V

from opd_jax.certify.estimators import ALL_DIVERGENCES
from opd_jax.losses.divergences import ForwardKL, ReverseKL
from opd_jax.losses.normalisers import per_sequence, per_token
from opd_jax.losses.terms import (
  K2,
  K3,
  ClippedRatio,
  HiddenDistance,
  ImportanceRatio,
  Likelihood,
  PolicyGradient,
)
from opd_jax.method import Method
from opd_jax.methods.aopd import aopd
from opd_jax.methods.esr import esr
from opd_jax.methods.exopd import exopd
from opd_jax.methods.fire_opd import fire_opd
from opd_jax.methods.gndpo import gndpo
from opd_jax.methods.iw_opd import iw_opd
from opd_jax.methods.kat import kat
from opd_jax.methods.lgr import lgr
from opd_jax.methods.omni_opd import omni_opd
from opd_jax.methods.opd import opd
from opd_jax.methods.opd_plus import opd_plus
from opd_jax.methods.oprd import oprd
from opd_jax.methods.safe_top_k import VARIANTS as SAFE
from opd_jax.methods.safe_top_k import safe_top_k
from opd_jax.methods.safesteer import safesteer
from opd_jax.methods.scope import scope
from opd_jax.methods.sg_opd import sg_opd
from opd_jax.methods.ta_opd import scores_of, ta_opd
from opd_jax.methods.tropd import tropd


@pytest.fixture(autouse=True)
def float64():
  with jax.enable_x64(True):
    yield


def evidence_of(method: Method, **models):
  """Evidence of the small batch, and the targets of its judges."""
  logits = {'student': STUDENT_LOGITS, 'teacher': TEACHER_LOGITS, **models}
  return worlds.from_logits(**logits, reference=REFERENCE_LOGITS, response=RESPONSE, method=method)


def coefficients(method: Method, **models) -> list[np.ndarray]:
  weighted = worlds.weigh(method)(evidence_of(method, **models)[0])
  return [np.asarray(each.coefficient) for each in weighted]


def gradient(method: Method, **models) -> np.ndarray:
  return np.asarray(worlds.ours(method, **models)[1])


def gap():
  """log q - log p of the written tokens."""
  pick = lambda x: np.take_along_axis(np.asarray(jax.nn.log_softmax(x)), RESPONSE[..., None], -1)
  return (pick(TEACHER_LOGITS) - pick(STUDENT_LOGITS))[..., 0]


# --- a student that is its teacher ------------------------------------------------------------------


def test_at_the_teacher_aopd_has_no_sampled_part_and_no_loss():
  guided, sampled = coefficients(aopd(k=K), student=TEACHER_LOGITS)
  assert (guided != 0).sum() == MASK.sum() and not sampled.any()
  assert abs(float(worlds.ours(aopd(k=K), student=TEACHER_LOGITS)[0])) < 1e-15


@pytest.mark.parametrize('divergence', ALL_DIVERGENCES, ids=lambda each: each.name)
def test_at_the_teacher_every_corrected_advantage_is_zero(divergence):
  (weight,) = coefficients(opd_plus(divergence=divergence), student=TEACHER_LOGITS)
  np.testing.assert_allclose(weight, 0.0, rtol=0, atol=1e-15)


def test_at_the_teacher_tropd_rejects_nothing_whatever_it_draws():
  method = tropd(k=K, prefix=None)
  weigh, evidence = worlds.weigh(method), evidence_of(method, student=TEACHER_LOGITS)[0]
  for seed in range(8):
    terms = weigh(evidence._replace(key=jax.random.key(seed)))
    assert all(not np.asarray(each.coefficient).any() for each in terms)


# --- methods that are OPD at an end -----------------------------------------------------------------


def test_sg_opd_without_extrapolation_and_with_a_wide_bound_is_opd_per_sequence():
  """λ = 1, β = 1, φ = 1: the gate chooses between two equal things."""
  method = sg_opd(strength=1.0, conflict=1.0, bound=1e9, taught=0.0)
  want = worlds.paper(lambda of: worlds.by_sequence(of.mask, -worlds.stop(of.q - of.p) * of.p))
  np.testing.assert_allclose(gradient(method), want[1], rtol=0, atol=1e-14)


def test_a_ratio_of_one_has_the_gradient_of_reinforce_clipped_or_not():
  logp = np.asarray(evidence_of(opd())[0].scores['student'].logp)
  counts, inputs = per_token(MASK), {'advantage': gap(), 'behaviour_logp': logp}
  slopes = [
    worlds.through_the_pass(STUDENT_LOGITS, RESPONSE, {}, (weighted,))[1]
    for weighted in (
      PolicyGradient()(counts * gap()),
      ImportanceRatio()(counts, **inputs),
      ClippedRatio()(counts, **inputs),
      ClippedRatio(dual=3.0)(counts, **inputs),
    )
  ]
  for each in slopes:
    np.testing.assert_allclose(each, gradient(opd()), rtol=0, atol=1e-15)


# --- what gates and weights are ---------------------------------------------------------------------

GATED = {
  'aopd': aopd(k=K),
  'iw_opd': iw_opd(),
  'fire_opd': fire_opd(),
  'scope': scope(),
  'sg_opd': sg_opd(),
  'exopd': exopd(),
}


@pytest.mark.parametrize('method', GATED.values(), ids=GATED)
def test_no_gradient_flows_through_gates_and_weights(method):
  """The slope of the loss along a direction, its weights left as they are; were they to follow, it would be another."""
  evidence, targets = evidence_of(method)
  terms, step = worlds.weigh(method)(evidence), 1e-5
  way = np.random.RandomState(2).randn(*STUDENT_LOGITS.shape)

  def slope(frozen: bool):
    def loss(logits):
      moved, own = evidence_of(method, student=logits)
      weighted = terms if frozen else worlds.weigh(method)(moved)
      return float(worlds.through_the_pass(logits, RESPONSE, own, weighted)[0])

    return (loss(STUDENT_LOGITS + step * way) - loss(STUDENT_LOGITS - step * way)) / (2 * step)

  own = float((worlds.through_the_pass(STUDENT_LOGITS, RESPONSE, targets, terms)[1] * way).sum())
  assert abs(slope(True) - own) < 1e-8 < 1e-3 < abs(slope(False) - own)


PADDED = {
  'opd': opd(),
  'aopd': aopd(k=K),
  'gndpo': gndpo(),
  'iw_opd': iw_opd(),
  'fire_opd': fire_opd(),
  'ta_opd': ta_opd(fraction=0.3, k=K),
}


@pytest.mark.parametrize('method', PADDED.values(), ids=PADDED)
def test_columns_without_tokens_change_no_weight(method):
  evidence, width = evidence_of(method)[0], RESPONSE.shape[1]
  wider = lambda x: jnp.pad(x, [(0, 0), (0, 3), *[(0, 0)] * (x.ndim - 2)]) if x.ndim >= 2 else x
  wide = lambda tree: jax.tree.map(lambda x: wider(jnp.asarray(x)), tree)
  rollout = wide(evidence.rollout._replace(prompt=None))
  padded = evidence._replace(
    rollout=rollout._replace(prompt=evidence.rollout.prompt),
    mask=wide(evidence.mask),
    scores=wide(evidence.scores),
    measures=wide(dict(evidence.measures)),
  )
  narrow, broad = (worlds.weigh(method)(each) for each in (evidence, padded))
  for one, other in zip(narrow, broad, strict=True):
    np.testing.assert_allclose(other.coefficient[:, :width], one.coefficient, rtol=1e-13)
    assert not np.asarray(other.coefficient[:, width:]).any()


# --- estimators, supports, states -------------------------------------------------------------------


def test_the_losses_k1_k2_and_k3_have_the_gradients_of_nothing_reverse_and_forward_kl():
  """In expectation over the student's own tokens, by enumeration."""
  z, log_q = (jax.nn.log_softmax(x[0, 0]) for x in (jnp.asarray(STUDENT_LOGITS), TEACHER_LOGITS))
  chances = jnp.exp(z)

  def expected(term):
    value = lambda z: term.value(jax.nn.log_softmax(z), {'teacher_logp': log_q})
    return chances @ jax.jacobian(value)(z)

  exact = lambda divergence: jax.grad(lambda z: divergence(jax.nn.log_softmax(z), log_q))(z)
  np.testing.assert_allclose(expected(Likelihood()), 0.0, rtol=0, atol=1e-15)
  np.testing.assert_allclose(expected(K2()), exact(ReverseKL()), rtol=0, atol=1e-15)
  np.testing.assert_allclose(expected(K3()), exact(ForwardKL()), rtol=0, atol=1e-15)


def test_with_every_entry_all_ways_to_close_a_slice_are_one_gradient_and_have_names_of_their_own():
  closings = [{}, *(SAFE[name] for name in ('student', 'stopped', 'tail', 'raw'))]
  slopes = [gradient(safe_top_k(k=V, **settings)) for settings in closings]
  for each in slopes[1:]:
    np.testing.assert_allclose(each, slopes[0], rtol=0, atol=1e-14)
  names = set()
  for method in (safe_top_k(k=V, **settings) for settings in closings):
    names.add(method.weigh(evidence_of(method)[0])[0].term.name)
  assert len(names) == len(closings)


def test_a_plain_slice_pulls_by_p_times_one_more_than_its_log_ratio_less_what_the_logits_share():
  columns, counts = [7, 1, 4], np.asarray(per_sequence(MASK))[..., None]
  log_p, log_q = (np.asarray(jax.nn.log_softmax(x)) for x in (STUDENT_LOGITS, TEACHER_LOGITS))
  pull = np.zeros(log_p.shape)
  pull[..., columns] = (np.exp(log_p) * (log_p - log_q + 1))[..., columns]
  want = pull - np.exp(log_p) * pull.sum(-1, keepdims=True)
  got = gradient(safesteer(columns=tuple(columns)))
  np.testing.assert_allclose(got, want * counts, rtol=0, atol=1e-15)


def test_the_distance_of_states_is_zero_at_the_teacher_and_does_not_grow_with_the_width():
  hidden, other = jnp.asarray(STUDENT_LOGITS), jnp.asarray(TEACHER_LOGITS)
  distance = lambda one, two: HiddenDistance().value(one, {'hidden': two})
  assert not np.asarray(distance(other, other)).any()
  twice = lambda x: jnp.concatenate([x, x], axis=-1)
  np.testing.assert_allclose(
    distance(twice(hidden), twice(other)), distance(hidden, other), rtol=1e-14
  )
  assert float(worlds.ours(oprd(), student=TEACHER_LOGITS)[0]) == 0.0


# --- which tokens -----------------------------------------------------------------------------------


def kept_by_kat(eta: float, sizes: float | np.ndarray) -> np.ndarray:
  """Tokens that count where the KLs of all tokens are `sizes` and the memory holds 1 … 2."""
  method = kat(window=2, windows=2, eta=eta, exempt=1, warmup=0, buffer=8, min_entries=8)
  method = dataclasses.replace(method, memory=np.linspace(1, 2, 8))
  evidence = evidence_of(method)[0]
  measures = {'gap': jnp.asarray(np.where(MASK, sizes, 0.0))}
  (weighted,) = method.weigh(evidence._replace(measures=measures))
  return np.asarray(weighted.coefficient) != 0


def test_where_agreement_is_everywhere_kat_keeps_what_is_exempt_of_responses_that_it_stops():
  """It stops at token L0 + W + T - 1 = 4, and goes back to L0 = 1."""
  kept, lengths = kept_by_kat(0.3, 0.5), MASK.sum(axis=1)
  long = lengths >= 4
  leading = np.arange(MASK.shape[1]) == 0
  forced = np.argmax(MASK, axis=1)  # a row may begin with a token that does not count
  assert long.sum() > 2 and (kept[~long] == MASK[~long]).all()
  for row in np.flatnonzero(long & (forced == 0)):
    np.testing.assert_array_equal(kept[row], leading)


def test_a_smaller_eta_stops_kat_earlier():
  """s is the (1 - η) quantile: the text calls a small η careful, and it is not."""
  sizes = np.random.RandomState(0).uniform(0.8, 2.2, MASK.shape)
  counts = [int(kept_by_kat(eta, sizes).sum()) for eta in (0.0, 0.3, 0.7, 1.0)]
  assert counts == sorted(counts) and counts[0] < counts[-1]


def test_both_ends_of_a_response_can_be_taken_and_the_last_tokens_of_oprd_are_those_of_esr():
  first, last, states = (
    coefficients(each)[0] != 0
    for each in (esr(tokens=3, where='first'), esr(tokens=3, where='last'), oprd(count=3))
  )
  np.testing.assert_array_equal(states, last & MASK)
  whole = (MASK.sum(axis=1) == 6) & MASK[:, 0]
  assert whole.sum() == 2 and (first ^ last)[whole].all()


def test_teachable_tokens_are_so_many_and_one_of_every_response_and_a_shift_chooses_none_other():
  method = ta_opd(fraction=0.2, k=K)
  evidence = evidence_of(method)[0]
  chosen = np.asarray(worlds.weigh(method)(evidence)[0].coefficient) != 0
  there = MASK.any(axis=1)
  assert chosen[there].any(axis=1).all()
  best = int(np.ceil(0.2 * MASK.sum()))
  assert best <= chosen.sum() <= best + there.sum()
  shifted = {'disagreement': evidence.measures['disagreement'] + 3.0}
  again = worlds.weigh(method)(evidence._replace(measures=shifted))[0].coefficient
  np.testing.assert_array_equal(np.asarray(again) != 0, chosen)


def test_a_token_is_no_less_teachable_for_more_disagreement_or_compatibility():
  steps = np.linspace(0, 1, 5)
  d, c = np.meshgrid(steps, steps, indexing='ij')
  for name in ('teachable', 'soft or', 'divergence', 'compatible'):
    score = scores_of(0.3 * np.ones_like(d), d, c)[name]
    assert (np.diff(score, axis=0) >= -1e-15).all() and (np.diff(score, axis=1) >= -1e-15).all()


@pytest.mark.parametrize('method', [lgr(), omni_opd(), ta_opd()], ids=['lgr', 'omni_opd', 'ta_opd'])
def test_uncertainty_is_the_students_and_the_teachers_is_not_asked_for(method):
  assert method.needs.of_student.entropy
  assert not any(request.entropy for request in method.needs.judges.values())
