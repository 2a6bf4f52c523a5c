"""A method that asks for what nobody can give is refused when its stage is built, by name and with a remedy."""

import dataclasses

import jax.numpy as jnp
import pytest
import tiny_runs as runs

from opd_jax import judges, rollouts
from opd_jax.claims import Nothing
from opd_jax.forks import Forking, Forks
from opd_jax.losses.divergences import ReverseKL
from opd_jax.losses.normalisers import per_token
from opd_jax.losses.rest_rules import Tail
from opd_jax.losses.supports import FULL, Support, TeacherTopK
from opd_jax.losses.terms import DivergenceTerm, HiddenDistance, Likelihood, PolicyGradient
from opd_jax.method import Method, Requirements, required_by
from opd_jax.method_reads import judges_read
from opd_jax.methods import opd, scope, seqkd
from opd_jax.storage import load
from opd_jax.training import inspection
from opd_jax.types import STUDENT, ScoreRequest

WHOLE = DivergenceTerm(divergence=ReverseKL(), support=FULL)
TOP = DivergenceTerm(divergence=ReverseKL(), support=Support(entries=TeacherTopK(4), rest=Tail()))


def method_of(weigh, needs: Requirements = Requirements(), **settings) -> Method:
  settings = {'rollout': rollouts.student(), **settings}
  return Method(weigh=weigh, paper='none', claim=Nothing('a test'), needs=needs, **settings)


def plain(evidence):
  return (PolicyGradient()(per_token(evidence.mask) * evidence.teacher.logp),)


def term_of(term):
  return lambda evidence: (term(per_token(evidence.mask)),)


def distance(evidence):
  return (HiddenDistance()(per_token(evidence.mask), hidden=evidence.teacher.hidden),)


def rewarded(evidence):
  reward = jnp.nan_to_num(evidence.rollout.reward)[:, None]
  return (Likelihood()(per_token(evidence.rollout.mask) * reward),)


def asks(**request) -> Requirements:
  return Requirements(teacher=ScoreRequest(**request))


def combined(folder):
  other = judges.frozen(folder, dtype='float32')  # a model of its own
  return judges.combined(parts=((1.0, judges.frozen(folder)), (-0.5, other)))


def routed(folder):
  return judges.routed({'': judges.frozen(folder)})


CASES = {
  'more of the best than there are': (
    method_of(plain, asks(top_k=25)),
    judges.frozen,
    r'judge teacher \(.*\): scorer: top_k=25 of a vocabulary of 24\. Let the method ask',
  ),
  'more of the best of the student': (
    method_of(plain, asks(at_student_top_k=25)),
    judges.frozen,
    r'judge student \(the student itself\): scorer: top_k=25',
  ),
  'a layer that is not there': (
    method_of(plain, asks(layers=(0, 7))),
    judges.frozen,
    r'judge teacher \(.*\): scorer: layers \[7\] do not exist; the model has layers 0 to 0\. Let',
  ),
  'a layer of one of several routes': (
    method_of(plain, asks(layers=(7,))),
    routed,
    r'judge teacher/ \(.*\): scorer: layers \[7\]',
  ),
  'layers of several models': (
    method_of(plain, asks(layers=(0,))),
    combined,
    r'judge teacher: inner layers .* several models make this judge\. Bind one of them',
  ),
  'text of several models': (
    seqkd.seqkd(),
    combined,
    r'the teacher is to write, and several models make this judge\. Bind one model',
  ),
  'text of one of several routes': (
    method_of(plain, rollout=rollouts.student(prefix=2)),
    routed,
    r'the teacher is to write',
  ),
  'a whole distribution that nobody asked for': (
    method_of(term_of(WHOLE), asks(top_k=8)),
    judges.frozen,
    r'compares with the teacher, reverse_kl on full.*did not ask.*needs=required_by\(term\)',
  ),
  'more of the best than was asked for': (
    method_of(term_of(TOP), asks(top_k=3)),
    judges.frozen,
    r'compares with the teacher, .*did not ask',
  ),
  'a judge that is there and is not asked': (
    method_of(term_of(dataclasses.replace(WHOLE, of='reference'))),
    judges.frozen,
    r'compares with the reference, .*did not ask',
  ),
  'states of another width': (
    method_of(distance, asks(hidden=True)),
    combined,
    r"states of width 64 with the student's, whose width is 32\. Bind a judge of the student's",
  ),
}


@pytest.mark.parametrize('method, judge, words', CASES.values(), ids=CASES)
def test_what_nobody_can_give_is_refused_before_anything_is_loaded(
  tmp_path, monkeypatch, method, judge, words
):
  both = {'teacher': judge(runs.teacher_folder(tmp_path)), 'reference': judges.itself()}
  known = runs.experiment(tmp_path, distil={'method': method, 'judges': both})
  monkeypatch.setattr(load, 'model', lambda *args, **options: pytest.fail('weights were loaded'))
  with pytest.raises(ValueError, match=f'stage distil: .*{words}'):
    inspection.check(known, lambda text: None)
  with pytest.raises(ValueError, match=f'stage distil: .*{words}'):
    runs.build_runtime(known, 1)


def looked_at(look) -> Method:
  """Its forks leave where a number of the evidence says; nothing else looks at it."""

  def plan(evidence):
    row = jnp.where(look(evidence).sum(axis=-1) > 0, jnp.arange(len(evidence.mask)), -1)
    number = row.astype(jnp.int32)
    return Forks(number, number * 0, number * 0 - 1, number * 0 + STUDENT)

  return method_of(taught, forks=Forking(plan=plan, tokens=1, writers=('student',)))


def remembers(look) -> Method:
  """It remembers a number of the evidence; nothing else looks at it."""
  return method_of(taught, memory=jnp.zeros(()), remember=lambda evidence: look(evidence).sum())


def taught(evidence):
  return (Likelihood()(per_token(evidence.rollout.mask)),)


@pytest.mark.parametrize('made', [looked_at, remembers])
def test_what_only_a_plan_of_forks_or_a_memory_looks_at_is_found_too(tmp_path, monkeypatch, made):
  monkeypatch.setattr(load, 'model', lambda *args, **options: pytest.fail('weights were loaded'))
  frozen = {'teacher': judges.frozen(runs.teacher_folder(tmp_path))}

  def look(read, **changes):
    distil = {'method': made(read), 'judges': frozen, **changes}
    inspection.check(runs.experiment(tmp_path, distil=distil), lambda text: None)

  with pytest.raises(ValueError, match=r"reads the teacher's scores and there is no judge called"):
    look(lambda evidence: evidence.teacher.logp, judges={})
  with pytest.raises(ValueError, match=r"reads the judge 'reference', and there are only"):
    look(lambda evidence: evidence.judge('reference').logp)
  with pytest.raises(ValueError, match=r"reads 'entropy' of the student.*student=ScoreRequest\("):
    look(lambda evidence: evidence.student.entropy)
  silent = dataclasses.replace(runs.sums.sums(), verify=None)
  with pytest.raises(ValueError, match=r'by their reward, and the task sums has no verifier'):
    look(lambda evidence: evidence.rollout.reward[:, None], task=silent)
  look(lambda evidence: evidence.teacher.logp)
  assert judges_read(made(lambda evidence: evidence.student.logp)) == {'student'}
  assert judges_read(made(lambda evidence: evidence.mask)) == set()


GIVEN = {
  'as many as were asked for': (method_of(term_of(TOP), required_by(TOP)), judges.frozen),
  'a part of a whole distribution': (method_of(term_of(TOP), asks(hidden=True)), judges.frozen),
  'a whole distribution of several': (method_of(term_of(WHOLE), required_by(WHOLE)), combined),
  'states of its own width': (method_of(distance, asks(hidden=True)), judges.frozen),
  'the last layer': (method_of(plain, asks(layers=(0,))), routed),
}


@pytest.mark.parametrize('method, judge', GIVEN.values(), ids=GIVEN)
def test_what_somebody_can_give_is_not_refused(tmp_path, method, judge):
  teacher = {'teacher': judge(runs.teacher_folder(tmp_path))}
  known = runs.experiment(tmp_path, distil={'method': method, 'judges': teacher})
  inspection.check(known, lambda text: None)


def test_a_reward_needs_a_verifier_unless_the_method_says_what_it_does_without(tmp_path):
  """Found by tracing `weigh`; a method that states `reward=False` takes a task that nobody verifies."""
  silent = dataclasses.replace(runs.sums.sums(), verify=None)
  look = lambda method, task: inspection.check(
    runs.experiment(tmp_path, distil={'method': method, 'task': task}), lambda text: None
  )
  words = (
    r'stage distil: the method weighs responses by their reward, and the task sums has no veri'
  )
  needing = (scope.scope(), method_of(rewarded), method_of(plain, Requirements(reward=True)))
  for method in needing:
    with pytest.raises(ValueError, match=words):
      look(method, silent)
    look(method, runs.sums.sums())
  for method in (opd.opd(), method_of(rewarded, Requirements(reward=False))):
    look(method, silent)


def test_who_needs_a_reward_needs_it_together_with_others():
  states = [Requirements(reward=reward) for reward in (None, False, True)]
  joined = [[(one | other).reward for other in states] for one in states]
  assert joined == [[None, False, True], [False, False, True], [True, True, True]]
