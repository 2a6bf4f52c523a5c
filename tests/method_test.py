"""What a method is told: what it asked for and nothing else, zeros where nobody knows, errors that name the request."""

import dataclasses

import evidence_worlds as worlds
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from evidence_worlds import REFERENCE_LOGITS, RESPONSE, STUDENT_LOGITS, TEACHER_LOGITS

from opd_jax import rollouts
from opd_jax.claims import Nothing
from opd_jax.losses import advantages, weights
from opd_jax.losses.divergences import ForwardKL, ReverseKL
from opd_jax.losses.normalisers import per_token
from opd_jax.losses.rest_rules import Tail
from opd_jax.losses.supports import FULL, StudentTopK, Support, TeacherTopK
from opd_jax.losses.terms import (
  K3,
  ClippedRatio,
  DivergenceTerm,
  ImportanceRatio,
  Likelihood,
  PolicyGradient,
)
from opd_jax.method import Evidence, Method, Requirements, as_asked, required_by
from opd_jax.method_reads import blank_evidence, judges_read, rollout_read, stale_terms
from opd_jax.types import ScoreRequest


def method_of(weigh, **settings) -> Method:
  return Method(
    weigh=weigh, paper='none', rollout=rollouts.student(), claim=Nothing('a test'), **settings
  )


def evidence_of(method: Method) -> Evidence:
  logits = (np.asarray(x, np.float32) for x in (STUDENT_LOGITS, TEACHER_LOGITS, REFERENCE_LOGITS))
  return worlds.from_logits(*logits, RESPONSE, method)[0]


def unknown_to(evidence: Evidence, judge: str, rows, needs: Requirements) -> Evidence:
  """The same where a judge has no opinion of some rows, and says NaN there."""
  known = np.ones(RESPONSE.shape, bool)
  known[rows] = False
  scores = evidence.scores[judge]
  logp = np.where(known, scores.logp, np.nan)
  told = {**evidence.scores, judge: scores._replace(known=known, logp=logp)}
  return Evidence.of(
    evidence.rollout, told, needs, memory=evidence.memory, step=evidence.step, key=evidence.key
  )


def rewarded(evidence: Evidence):
  """A reward for the row, and the teacher's opinion of its tokens."""
  outcome = weights.group_advantage(evidence.rollout.reward, evidence.rollout.prompt.group)
  gap = advantages.log_ratio(evidence.teacher.logp, evidence.student.logp)
  return (
    PolicyGradient()(per_token(evidence.rollout.mask) * outcome[:, None]),
    PolicyGradient()(per_token(evidence.mask) * gap),
  )


def test_rows_that_no_judge_knows_keep_their_rewards():
  method, row = method_of(rewarded), 5
  whole = evidence_of(method)
  weigh = worlds.weigh(method)
  (reward, gap), (same_reward, known_gap) = (
    [term.coefficient for term in weigh(evidence)]
    for evidence in (whole, unknown_to(whole, 'teacher', [row], method.needs))
  )
  np.testing.assert_array_equal(same_reward, reward)
  assert reward[row].any() and gap[row].any() and not known_gap[row].any()
  assert np.isfinite(known_gap).all()
  others = np.arange(worlds.ROWS) != row
  ratio = worlds.MASK.sum() / worlds.MASK[others].sum()  # fewer tokens share the teacher's term
  np.testing.assert_allclose(known_gap[others], gap[others] * ratio, rtol=1e-6)


def test_a_judge_that_is_not_asked_takes_nothing_from_the_mask():
  """What a routed or diagnosed judge does not know is no loss to a method that does not read it."""
  method = method_of(rewarded)
  evidence = evidence_of(method)
  beside = {**evidence.scores, 'reference': evidence.scores['teacher']}
  beside = evidence._replace(scores=beside)
  np.testing.assert_array_equal(
    unknown_to(beside, 'reference', [5], method.needs).mask, evidence.mask
  )


@pytest.mark.parametrize('field', ['top_k', 'at_ids'])
def test_it_sees_as_many_entries_as_it_asked_for(field):
  """Eight were scored, for the metrics or for another method's sake; four were asked for."""
  many = method_of(rewarded, needs=Requirements(teacher=ScoreRequest(top_k=8, at_student_top_k=8)))
  few = Requirements(teacher=ScoreRequest(top_k=4, at_student_top_k=4))
  evidence = evidence_of(many)
  seen = getattr(as_asked(evidence, few).teacher, field)
  told = getattr(evidence.teacher, field)
  assert told.ids.shape[-1] == 8 and seen.ids.shape[-1] == seen.logp.shape[-1] == 4
  np.testing.assert_array_equal(seen.ids, told.ids[..., :4])
  np.testing.assert_array_equal(seen.logp, jnp.where(worlds.MASK[..., None], told.logp[..., :4], 0))


READS = {
  'entropy': r'needs=Requirements\(teacher=ScoreRequest\(entropy=True\)\)',
  'top_k': r'teacher=ScoreRequest\(top_k=…\)',
  'at_ids': r'teacher=ScoreRequest\(at_student_top_k=…\)',
  'hidden': r'teacher=ScoreRequest\(hidden=True\)',
  'layers': r'teacher=ScoreRequest\(layers=\(…,\)\)',
}


@pytest.mark.parametrize('field, words', READS.items(), ids=READS)
def test_what_nobody_asked_for_is_an_error_that_names_the_request(field, words):
  """At the first step, also where it was scored for somebody else; and before any run, when a stage is built."""

  def weigh(evidence):
    return (Likelihood()(per_token(evidence.mask) * jnp.size(getattr(evidence.teacher, field))),)

  everything = ScoreRequest(entropy=True, top_k=2, at_student_top_k=2, hidden=True, layers=(1,))
  generous = evidence_of(method_of(weigh, needs=Requirements(teacher=everything)))
  for attempt in (
    lambda: worlds.weigh(method_of(weigh))(generous),
    lambda: judges_read(method_of(weigh)),
  ):
    with pytest.raises(ValueError, match=f'reads {field!r} of the teacher.*{words}'):
      attempt()


def test_a_request_to_another_judge_is_named_as_one():
  method = method_of(
    lambda evidence: (Likelihood()(evidence.judge('reference').entropy),),
    needs=Requirements(others={'reference': ScoreRequest()}),
  )
  with pytest.raises(ValueError, match=r"others=\{'reference': ScoreRequest\(entropy=True\)\}"):
    judges_read(method)


def test_a_judge_that_is_not_there_is_named():
  method = method_of(lambda evidence: (Likelihood()(evidence.judge('critic').logp),))
  words = (
    r"reads the judge 'critic', and there are only \['student', 'teacher'\].*'critic': @judges"
  )
  with pytest.raises(ValueError, match=words):
    worlds.weigh(method)(evidence_of(method))


def test_numbers_are_zero_where_they_mean_nothing():
  needs = Requirements(
    teacher=ScoreRequest(entropy=True, top_k=3, hidden=True),
    measures={'kl': DivergenceTerm(divergence=ReverseKL(), support=FULL)},
  )
  evidence = evidence_of(method_of(rewarded, needs=needs))
  told = unknown_to(evidence, 'teacher', [5], needs)
  told = told._replace(measures={'kl': jnp.where(told.mask, evidence.measures['kl'], jnp.nan)})
  seen = as_asked(told, needs)
  off = ~np.asarray(told.mask)
  assert off[5].all() and not off[0].any()
  for field in ('logp', 'entropy', 'hidden'):
    assert not np.asarray(getattr(seen.teacher, field))[off].any()
  assert not np.asarray(seen.teacher.top_k.logp)[off].any()
  assert not np.asarray(seen.measures['kl'])[off].any()
  assert np.asarray(seen.student.logp)[5].any()  # who knows keeps its opinion


def test_measures_are_read_before_anything_is_weighed():
  divergence = DivergenceTerm(divergence=ForwardKL(), support=FULL)
  method = method_of(
    lambda evidence: (Likelihood()(evidence.measures['gap']),),
    needs=Requirements(measures={'gap': divergence}),
  )
  evidence = evidence_of(method)
  log_p, log_q = (jax.nn.log_softmax(x) for x in (STUDENT_LOGITS, TEACHER_LOGITS))
  want = np.where(worlds.MASK, (np.exp(log_q) * (log_q - log_p)).sum(-1), 0.0)
  np.testing.assert_allclose(
    worlds.weigh(method)(evidence)[0].coefficient, want, rtol=1e-4, atol=1e-6
  )
  assert judges_read(method) == {'teacher'} and method.needs.judges['teacher'].hidden


def test_memory_is_read_when_a_batch_is_weighed_and_written_once_behind_it():
  """A running mean of the gap, as a baseline: pure functions of evidence, of the same shapes every time."""

  def gap(evidence):
    return jnp.where(
      evidence.mask, advantages.log_ratio(evidence.teacher.logp, evidence.student.logp), 0.0
    )

  def weigh(evidence):
    return (PolicyGradient()(per_token(evidence.mask) * (gap(evidence) - evidence.memory['mean'])),)

  def remember(evidence):
    mean = gap(evidence).sum() / evidence.mask.sum()
    return {
      'mean': 0.9 * evidence.memory['mean'] + 0.1 * mean, 'batches': evidence.memory['batches'] + 1
    }  # fmt: skip

  memory = {'mean': np.float32(0.0), 'batches': np.int32(0)}
  method = method_of(weigh, memory=memory, remember=remember)
  evidence, program = evidence_of(method), worlds.weigh(method)
  means = []
  for _ in range(3):
    means.append(float(evidence.memory['mean']))
    remembered = remember(as_asked(evidence, method.needs))
    assert jax.tree.map(jnp.shape, remembered) == jax.tree.map(jnp.shape, evidence.memory)
    evidence = evidence._replace(memory=remembered)
  plain = np.asarray(
    program(evidence._replace(memory=blank_evidence(method).memory))[0].coefficient
  )
  shifted = np.asarray(program(evidence)[0].coefficient)
  mean = float((plain * 1.0).sum())  # Σ gap / tokens
  np.testing.assert_allclose(means, [0.0, 0.1 * mean, 0.19 * mean], rtol=1e-5)
  want = plain - worlds.MASK / worlds.MASK.sum() * 0.271 * mean
  np.testing.assert_allclose(shifted, want, rtol=1e-5, atol=1e-7)
  assert int(evidence.memory['batches']) == 3 and program._cache_size() == 1


def test_requirements_compose():
  top = DivergenceTerm(divergence=ForwardKL(), support=Support(entries=TeacherTopK(4), rest=Tail()))
  own = Support(entries=StudentTopK(3), rest=Tail())
  needs = required_by(top, DivergenceTerm(divergence=ReverseKL(), support=own, of='reference'))
  needs |= Requirements(student=ScoreRequest(entropy=True), teacher=ScoreRequest(top_k=2))
  assert needs.judges == {
    'teacher': ScoreRequest(top_k=4),
    'reference': ScoreRequest(at_student_top_k=3),
  }
  assert needs.of_student == ScoreRequest(entropy=True, top_k=3)
  hot = dataclasses.replace(top, temperature=0.5)
  assert required_by(hot).teacher == ScoreRequest(top_k=4, hidden=True)


def test_who_asks_for_nothing_has_no_temperature_in_mind():
  warm = ScoreRequest(temperature=0.7, top_k=2)
  both = Requirements(teacher=warm, others={'reference': warm}, student=warm) | Requirements()
  assert both.teacher == both.others['reference'] == both.student == warm
  other = Requirements(teacher=ScoreRequest(at_student_top_k=3, temperature=0.7))
  assert (both | other).of_student == dataclasses.replace(warm, top_k=3)
  with pytest.raises(ValueError, match='cannot answer at temperatures'):
    both | Requirements(teacher=ScoreRequest(entropy=True))


def test_judges_read_are_those_that_reach_a_term():
  teacher = DivergenceTerm(divergence=ReverseKL(), support=FULL)
  cases = {
    frozenset(): lambda e: (Likelihood()(per_token(e.rollout.mask)),),
    frozenset({'student'}): lambda e: (
      Likelihood()(per_token(e.mask) * e.student.logp + 0 * jnp.size(e.teacher.logp)),
    ),
    frozenset({'teacher'}): lambda e: (teacher(per_token(e.mask)),),
    frozenset({'student', 'teacher'}): rewarded,
  }
  needs = Requirements(teacher=ScoreRequest(hidden=True))
  for want, weigh in cases.items():
    assert judges_read(method_of(weigh, needs=needs)) == want


def aged(term, *, behaviour: str | None = None, corrected: bool = False):
  """A `weigh` of one term on the student's text, with its ratio against the weights at weighing or at drawing."""

  def weigh(evidence):
    student, drawn = evidence.student.logp, evidence.rollout.behaviour_logp
    coefficient = per_token(evidence.mask)
    if corrected:
      coefficient = coefficient * weights.truncated_importance(student, drawn)
    gap = advantages.log_ratio(evidence.teacher.logp, student)
    if behaviour is not None:
      logp = drawn if behaviour == 'drawn' else student
      return (term(coefficient, advantage=gap, behaviour_logp=logp),)
    if 'teacher_logp' in term.inputs_wanted:
      return (term(coefficient, teacher_logp=evidence.teacher.logp),)
    return (term(coefficient * gap if isinstance(term, PolicyGradient) else coefficient),)

  return weigh


ONCE_OR_ANEW = [
  # a term, and whether it is biased where it is weighed once, and where it is weighed anew
  (aged(PolicyGradient()), True, True),
  (aged(PolicyGradient(), corrected=True), True, False),  # weighed once, the correction is too old
  (aged(K3()), True, True),
  (aged(K3(), corrected=True), True, False),
  (aged(ClippedRatio(), behaviour='weighed'), False, True),  # weighed anew, its ratio is one
  (aged(ClippedRatio(), behaviour='drawn'), False, False),
  (aged(ImportanceRatio(), behaviour='drawn'), False, False),
  (aged(Likelihood()), False, False),
  (aged(DivergenceTerm(divergence=ReverseKL(), support=FULL)), False, False),
]


@pytest.mark.parametrize('weigh, once, anew', ONCE_OR_ANEW)
def test_terms_that_several_updates_bias_are_known(weigh, once, anew):
  needs = Requirements(teacher=ScoreRequest(hidden=True))
  for reweigh, stale in ((False, once), (True, anew)):
    assert bool(stale_terms(method_of(weigh, needs=needs, reweigh=reweigh))) == stale


def test_fields_of_the_rollout_that_reach_a_term_are_known():
  assert rollout_read(method_of(rewarded)) == {'reward', 'prompt', 'mask'}
  looked = aged(ClippedRatio(), behaviour='drawn')
  assert rollout_read(method_of(looked)) == {'behaviour_logp'}

  def glance(evidence):
    return (Likelihood()(per_token(evidence.mask) + 0 * jnp.size(evidence.rollout.reward)),)

  assert rollout_read(method_of(glance)) == set()
