"""What is known of a judge: whole, by its top k, at the student's ids; candidates, ratios; and what is refused."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from vocabulary_cases import (
  CASES,
  B,
  D,
  K,
  R,
  V,
  close,
  every_case,
  on,
  only,
  tiled,
  weighted,
  whole,
  world,
)

from opd_jax.losses.divergences import ForwardKL, ReverseKL
from opd_jax.losses.rest_rules import Renormalised, Tail, TeacherOnly
from opd_jax.losses.supports import Support, TeacherTopK
from opd_jax.losses.terms import (
  K2,
  Candidates,
  ClippedRatio,
  DivergenceTerm,
  Likelihood,
  PolicyGradient,
  Term,
  TruncatedRatio,
)
from opd_jax.losses.vocab_shard import Target
from opd_jax.sharding import mesh_layout
from opd_jax.static import static
from opd_jax.types import TopK


@pytest.fixture(autouse=True)
def float64():
  with jax.enable_x64(True):
    yield


def log_probabilities():
  """Of the student, the teacher and the reference."""
  hidden, head, _, targets = world()
  pairs = [(hidden, head), *((target.hidden, target.head) for target in targets.values())]
  return [jax.nn.log_softmax(states @ matrix) for states, matrix in pairs]


def test_a_judge_known_by_its_top_k_or_at_the_students_ids_equals_a_whole_one():
  """As far as the rest is closed by one minus what is inside, too; more entries than are compared do no harm."""
  hidden, head, response, targets = world()
  log_p, *judges = log_probabilities()
  own = jax.lax.top_k(log_p, K + 1)[1]
  sparse = {}
  for name, log_q in zip(targets, judges, strict=True):
    best, ids = jax.lax.top_k(log_q, K + 2)
    at = TopK(ids=own, logp=jnp.take_along_axis(log_q, own, axis=-1))
    sparse[name] = Target(top_k=TopK(ids=ids, logp=best), at_ids=at)
  names = [
    'teacher tail',
    'forward tail',
    'teacher renorm',
    'teacher only',
    'teacher raw',
    'teacher stopped',
    'reference tail',
    'other writer tail',
    'student tail',
    'union',
    'intersection',
  ]
  terms = every_case(names)
  for number in range(len(names)):
    run = lambda given, number=number: tiled(hidden, head, response, given, only(terms, number))
    (value, _), gradients = run(sparse)
    (want, _), exact = run(targets)
    close((value, gradients), (want, exact))


def test_two_judges_are_not_mixed_up():
  """Terms of two judges that change places are the terms of the judges changed."""
  hidden, head, response, targets = world()
  terms = lambda one, other: (
    weighted(whole(ReverseKL(), of=one)),
    weighted(on(ForwardKL(), TeacherTopK(K), Tail(), of=other), 1),
  )
  swapped = dict(zip(targets, reversed(targets.values()), strict=True))
  run = lambda given, *of: tiled(hidden, head, response, given, terms(*of), diagnose=of[0])
  close(run(targets, 'teacher', 'reference'), run(swapped, 'reference', 'teacher'))
  (one, _), _ = run(targets, 'teacher', 'reference')
  (other, _), _ = run(swapped, 'teacher', 'reference')
  assert abs(one - other) > 1e-3


def test_ids_outside_the_vocabulary_are_no_entries():
  """A judge that had fewer to tell pads with -1 or with V; those must not look like certainties."""
  hidden, head, response, _ = world()
  best, ids = jax.lax.top_k(log_probabilities()[1], K)
  given = lambda ids, best: {'teacher': Target(top_k=TopK(ids=ids, logp=best))}
  padded = lambda strange: given(
    jnp.concatenate([ids, jnp.full_like(ids[..., :2], strange)], axis=-1),
    jnp.concatenate([best, jnp.zeros_like(best[..., :2])], axis=-1),
  )
  terms = lambda k: tuple(
    weighted(on(ForwardKL(), TeacherTopK(k), rest), seed)
    for seed, rest in enumerate((Tail(), Renormalised()))
  )
  for number in range(2):
    run = lambda targets, k, number=number: tiled(
      hidden, head, response, targets, only(terms(k), number)
    )
    (want, _), gradients = run(given(ids, best), K)
    for strange in (-1, V):
      (got, _), found = run(padded(strange), K + 2)
      close((got, found), (want, gradients))


def test_candidates_are_likelihood_and_forward_kl_at_their_ends():
  """One candidate, the written token, of weight one; and every token with the teacher's probability."""
  hidden, head, response, targets = world()
  coefficient = weighted(Likelihood()).coefficient
  run = lambda term: tiled(hidden, head, response, targets, (term,))
  written = Candidates()(coefficient, ids=response[..., None], weights=jnp.ones((B, R, 1)))
  (value, _), gradients = run(written)
  (want, _), exact = run(Likelihood()(coefficient))
  close((value, gradients), (want, exact))
  log_q = log_probabilities()[1]
  everything = jnp.broadcast_to(jnp.arange(V), (B, R, V))
  (value, _), gradients = run(Candidates()(coefficient, ids=everything, weights=jnp.exp(log_q)))
  (want, _), exact = run(whole(ForwardKL())(coefficient))
  close(gradients, exact)
  entropy = -(jnp.exp(log_q) * log_q).sum(-1)
  close(value, want + (coefficient * entropy).sum())  # cross entropy is forward KL and entropy


def test_candidates_outside_the_vocabulary_count_nothing_whatever_their_weight():
  hidden, head, response, targets = world()
  ids = jnp.stack([response, jnp.full_like(response, -1), jnp.full_like(response, V)], axis=-1)
  run = lambda weights, shape: tiled(
    hidden,
    head,
    response,
    targets,
    (Candidates()(jnp.ones((B, R)), ids=ids, weights=weights),),
    layout=mesh_layout(**shape),
  )
  ones = jnp.ones((B, R, 3))
  for shape in ({}, {'tensor': 8}):
    (value, _), gradients = run(ones.at[..., 1:].set(jnp.nan), shape)
    (want, _), exact = tiled(hidden, head, response, targets, (Likelihood()(jnp.ones((B, R))),))
    close((value, gradients), (want, exact))


def test_a_truncated_ratio_is_a_number_of_the_present_student():
  """Value and gradient of every position are those without it, times min(p / behaviour, max)."""
  hidden, head, response, targets = world()
  log_p = jnp.take_along_axis(log_probabilities()[0], response[..., None], axis=-1)[..., 0]
  one = weighted(CASES['other writer'])
  ratio = jnp.minimum(jnp.exp(log_p - one.inputs['behaviour_logp']), 1.5)
  assert (ratio == 1.5).any() and (ratio < 1.5).any()
  (value, reading), gradients = tiled(hidden, head, response, targets, (one,))
  plain = whole(ReverseKL())(one.coefficient * ratio)
  (want, without), exact = tiled(hidden, head, response, targets, (plain,))
  close((value, gradients), (want, exact))
  counts = one.coefficient != 0
  times = lambda value: jnp.where(counts, ratio * value, 0.0)
  close(jnp.where(counts, reading.values[0], 0.0), times(without.values[0]))


def test_temperature_divides_the_logits_of_both_models():
  """At the first order of 1/T the gradient is that of the squared distance of centred logits."""
  hidden, head, response, targets = world()
  heat = 1e4
  coefficient = jnp.ones((B, R))
  _, (d_hidden, _) = tiled(
    hidden, head, response, targets, (whole(ForwardKL(), temperature=heat)(coefficient),)
  )
  teacher = targets['teacher']
  centred = lambda logits: logits - logits.mean(axis=-1, keepdims=True)
  gap = centred(hidden @ head) - centred(teacher.hidden @ teacher.head)
  close(d_hidden * heat**2, gap / V @ head.T, 1e-2)
  cold = tiled(hidden, head, response, targets, (whole(ForwardKL(), temperature=1.0)(coefficient),))
  close(cold, tiled(hidden, head, response, targets, (CASES['forward full'](coefficient),)))


@pytest.mark.parametrize('name', ['reverse full', 'columns', 'student tail', 'teacher tail', 'hot'])
def test_what_the_judge_did_not_say_is_refused(name):
  hidden, head, response, _ = world()
  with pytest.raises(ValueError, match='whole distribution of the teacher'):
    tiled(hidden, head, response, {'teacher': Target()}, (weighted(CASES[name]),))


def test_tempered_terms_refuse_a_judge_that_is_known_by_its_top_k():
  hidden, head, response, _ = world()
  best, ids = jax.lax.top_k(log_probabilities()[1], K)
  sparse = {'teacher': Target(top_k=TopK(ids=ids, logp=best))}
  with pytest.raises(ValueError, match=r'temperature 0.7 needs the whole distribution'):
    tiled(hidden, head, response, sparse, (weighted(CASES['cold teacher tail']),))


ONES = np.ones((2, 2))


@pytest.mark.parametrize(
  'make, words',
  [
    (
      lambda: K2()(ONES),
      r"K2\(\): it reads \['teacher_logp'\] .*missing \['teacher_logp'\]",
    ),
    (lambda: PolicyGradient()(ONES, advantage=ONES), r"surplus \['advantage'\]"),
    (lambda: ClippedRatio()(ONES, advantage=ONES), r"missing \['behaviour_logp'\]"),
    (lambda: Candidates()(ONES, ids=ONES), r"missing \['weights'\]"),
    (lambda: CASES['other writer'](ONES), r"missing \['behaviour_logp'\]"),
    (lambda: CASES['hot'](ONES, behaviour_logp=ONES), r"surplus \['behaviour_logp'\]"),
    (lambda: ClippedRatio(dual=0.5), 'dual above 1'),
    (lambda: TruncatedRatio(max=0.0), 'max must be above 0'),
    (lambda: whole(ForwardKL(), temperature=0.0), 'temperature must be above 0'),
    (lambda: on(ReverseKL(), TeacherTopK(K), TeacherOnly()), 'infinite where the teacher has no'),
  ],
)
def test_terms_refuse_on_the_line_of_the_call(make, words):
  with pytest.raises(ValueError, match=words):
    make()


@static
class Strange(Term):
  pass


def test_other_refusals_name_what_came():
  hidden, head, response, targets = world()
  teacher = targets['teacher']
  one = weighted(PolicyGradient())

  def refused(words, term, given=teacher, **shape):
    with pytest.raises(ValueError, match=words):
      terms = () if term is None else (term,)
      layout = mesh_layout(**shape)
      tiled(hidden, head, response, {'teacher': given}, terms, layout=layout)

  refused('no terms', None)
  refused(
    'hidden states of the teacher and its head belong together', one, teacher._replace(head=None)
  )
  refused('40 entries, the teacher 39', one, teacher._replace(head=teacher.head[:, 1:]))
  refused('coefficient of PolicyGradient', one._replace(coefficient=one.coefficient[:, 1:]))
  short = K2()(one.coefficient, teacher_logp=jnp.zeros((B, R - 1)))
  refused(r"the input 'teacher_logp' of K2\(\)", short)
  refused(
    'the hidden states of the teacher are of shape',
    one,
    teacher._replace(hidden=teacher.hidden[:, 1:]),
  )
  many = weighted(on(ForwardKL(), TeacherTopK(V + 1), Tail()))
  refused('a top 41 is wanted of 40', many, tensor=8)
  few = Target(top_k=TopK(ids=jnp.zeros((B, R, 2), jnp.int32), logp=jnp.zeros((B, R, 2))))
  refused('2 entries were scored', weighted(CASES['teacher tail']), few)
  refused(r"the reference, and only \['teacher'\] are given", weighted(CASES['reference full']))
  three = jax.tree.map(lambda x: x[:3], one)
  with pytest.raises(ValueError, match='3 rows cannot be shared evenly by 8 devices'):
    tiled(hidden[:3], head, response[:3], {}, (three,), layout=mesh_layout(data=8))
  with pytest.raises(ValueError, match='is no term this pass knows'):
    tiled(hidden, head, response, {}, (one._replace(term=Strange()),))


def test_equal_terms_are_one_program():
  before = tiled._cache_size()
  for _ in range(2):
    term = DivergenceTerm(
      divergence=ForwardKL(), support=Support(entries=TeacherTopK(K), rest=Renormalised())
    )
    tiled(*world(), (term(jnp.ones((B, R))),))
  assert tiled._cache_size() == before + 1


def test_the_hidden_distance_moves_states_and_not_the_head():
  hidden, head, response, targets = world()
  one = weighted(CASES['hidden'])
  _, (d_hidden, d_head) = tiled(hidden, head, response, targets, (one,))
  want = 2 / D * one.coefficient[..., None] * (hidden - one.inputs['hidden'])
  close(d_hidden, want)
  np.testing.assert_array_equal(d_head, 0.0)
