"""SG-OPD against its formula: gate, conflict, the held gap, the teacher's rows and their weight by step."""

import jax.numpy as jnp
import numpy as np
import pytest
from evidence_worlds import (
  GROUPS,
  MASK,
  REFERENCE_LOGITS,
  RESPONSE,
  REWARDS,
  STUDENT_LOGITS,
  TEACHER_LOGITS,
  by_sequence,
  from_logits,
  ours,
  paper,
  same,
  stop,
  through_the_pass,
  weigh,
)

from opd_jax.claims import Converges
from opd_jax.methods.exopd import exopd
from opd_jax.methods.sg_opd import VARIANTS, sg_opd
from opd_jax.types import TEACHER

TAUGHT = (0, 3)  # a right row of group 0 and a wrong one of group 1


def outcome(taught=()):
  """The group's advantage of the reward, over rows that a verifier has seen and the student wrote."""
  found = np.zeros(len(GROUPS))
  for row, group in enumerate(GROUPS):
    mates = [
      REWARDS[other]
      for other, its in enumerate(GROUPS)
      if its == group and other not in taught and np.isfinite(REWARDS[other])
    ]
    if np.isfinite(REWARDS[row]) and row not in taught and np.std(mates) > 0:
      found[row] = (REWARDS[row] - np.mean(mates)) / (np.std(mates) + 1e-6)
  return found[:, None]


def advantage(of, mask, a, *, strength=1.8, conflict=1.0, tau=1.0, gated=None):
  gap = of.q - of.p
  gate = a * gap > 0 if gated is None else gated
  otherwise = a if conflict is None else conflict * gap
  taken = jnp.where(gate, gap + (strength - 1) * (of.q - of.r), otherwise)
  phi = jnp.minimum(1.0, tau / jnp.abs(gap))
  return phi / jnp.where(mask, phi, 0).sum() * mask.sum() * taken


def formula(**settings):
  def loss(of):
    taken = stop(advantage(of, MASK, outcome(), **settings))
    return by_sequence(MASK, -jnp.exp(of.p - stop(of.p)) * taken)

  return loss


CASES = {
  'published': ({}, {}),
  'taught only': (VARIANTS['taught only'], {'strength': 1.0}),
  'outcome in conflict': (VARIANTS['outcome in conflict'], {'conflict': None}),
  'weaker in conflict': ({'conflict': 0.7, 'bound': 0.4}, {'conflict': 0.7, 'tau': 0.4}),
}


@pytest.mark.parametrize('settings, papers', CASES.values(), ids=CASES)
def test_it_is_the_published_formula(settings, papers):
  same(ours(sg_opd(**settings)), paper(formula(**papers)))


def with_teacher(method, step):
  """Evidence in which the teacher wrote two rows, with targets."""
  logits = STUDENT_LOGITS, TEACHER_LOGITS, REFERENCE_LOGITS
  evidence, targets = from_logits(*logits, RESPONSE, method)
  writer = evidence.rollout.writer.copy()
  writer[list(TAUGHT)] = np.where(MASK[list(TAUGHT)], TEACHER, writer[list(TAUGHT)])
  rollout = evidence.rollout._replace(writer=writer)
  return evidence._replace(rollout=rollout, step=jnp.int64(step)), targets


@pytest.mark.parametrize('step, alpha', [(0, 0.1), (30, 0.1), (32, None), (35, 0.0), (99, 0.0)])
def test_right_answers_of_the_teacher_are_taught_and_no_other_row_of_it_counts(step, alpha):
  alpha = 0.05 * (1 + np.cos(np.pi * 2 / 5)) if alpha is None else alpha
  own = MASK & ~np.isin(np.arange(len(GROUPS)), TAUGHT)[:, None]

  def loss(of):
    taken = stop(advantage(of, own, outcome(TAUGHT)))
    lesson = of.p[0][MASK[0]].mean()  # row 3 is wrong
    return by_sequence(own, -jnp.exp(of.p - stop(of.p)) * taken) - alpha * lesson

  evidence, targets = with_teacher(sg_opd(), step)
  terms = weigh(sg_opd())(evidence)
  got, want = through_the_pass(STUDENT_LOGITS, RESPONSE, targets, terms), paper(loss)
  same(got, want)


def test_the_random_gate_opens_for_a_part_of_every_response():
  method = sg_opd(**VARIANTS['random gate'])
  evidence, _ = with_teacher(method, 0)
  gap = np.asarray(evidence.teacher.logp - evidence.student.logp)
  beyond = gap + 0.8 * np.asarray(evidence.teacher.logp - evidence.judge('reference').logp)
  given = np.asarray(weigh(method)(evidence)[0].inputs['advantage'])
  own = MASK & ~np.isin(np.arange(len(GROUPS)), TAUGHT)[:, None]
  phi = np.minimum(1, 1 / np.abs(gap))
  phi /= phi[own].mean()
  opened = own & np.isclose(given, phi * beyond)
  assert (opened | ~own | np.isclose(given, phi * gap)).all()
  np.testing.assert_array_equal(opened.sum(axis=1), -(-3 * own.sum(axis=1) // 10))


def test_a_token_that_the_sampler_found_rare_counts_for_more_up_to_a_bound():
  method = sg_opd()
  evidence, _ = with_teacher(method, 0)
  before = np.asarray(weigh(method)(evidence)[0].coefficient)
  for shift, factor in ((np.log(2), 2.0), (9.0, 5.0), (-1.0, np.exp(-1))):
    behaviour = evidence.rollout.behaviour_logp - shift
    rollout = evidence.rollout._replace(behaviour_logp=behaviour)
    after = weigh(method)(evidence._replace(rollout=rollout))[0].coefficient
    np.testing.assert_allclose(after, factor * before, rtol=1e-12)


def test_where_every_gate_is_open_it_extrapolates_and_where_none_is_it_follows_the_teacher():
  """Drawn for all tokens and without the bound: ExOPD at λ = 1.8 per sequence; all unverified: OPD per sequence."""
  opened = ours(sg_opd(at_random=1.0, bound=1e9))
  want = paper(
    lambda of: by_sequence(
      MASK, -jnp.exp(of.p - stop(of.p)) * stop(of.q - of.p + 0.8 * (of.q - of.r))
    )
  )
  same(opened, want)
  method = sg_opd(bound=1e9)
  logits = STUDENT_LOGITS, TEACHER_LOGITS, REFERENCE_LOGITS
  evidence, targets = from_logits(*logits, RESPONSE, method)
  unknown = evidence.rollout._replace(reward=np.full(len(GROUPS), np.nan))
  terms = weigh(method)(evidence._replace(rollout=unknown))
  closed = through_the_pass(STUDENT_LOGITS, RESPONSE, targets, terms)
  same(closed, paper(lambda of: by_sequence(MASK, -jnp.exp(of.p - stop(of.p)) * stop(of.q - of.p))))


def test_it_claims_the_teacher_only_where_nothing_leads_elsewhere():
  assert sg_opd(strength=1.0, taught=0.0).claim == Converges()
  for settings in ({}, *VARIANTS.values(), {'strength': 1.0, 'taught': 0.0, 'conflict': None}):
    assert sg_opd(**settings).claim != Converges()
  assert exopd().needs.judges.keys() == sg_opd().needs.judges.keys()
