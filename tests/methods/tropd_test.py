"""TrOPD against its formula, given which tokens were rejected; and the law by which they are."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from evidence_worlds import (
  LENGTHS,
  MASK,
  REFERENCE_LOGITS,
  RESPONSE,
  STUDENT_LOGITS,
  TEACHER_LOGITS,
  K,
  from_logits,
  ours,
  same,
  stop,
  through_the_pass,
  weigh,
)

from opd_jax.method import Evidence
from opd_jax.methods.opd import opd
from opd_jax.methods.tropd import VARIANTS, tropd
from opd_jax.ramps import Ramp

WRITTEN = np.arange(MASK.shape[1]) < np.array(LENGTHS)[:, None]  # with the token of the prefix
LOGITS = STUDENT_LOGITS, TEACHER_LOGITS, REFERENCE_LOGITS


def log_of(logits):
  log = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
  return log, np.take_along_axis(log, RESPONSE[..., None], -1)[..., 0]


P, p = log_of(STUDENT_LOGITS)
Q, q = log_of(TEACHER_LOGITS)


def with_prefix(method):
  """Evidence in which the prefix counts, as this method asks for it, with targets."""
  evidence, targets = from_logits(*LOGITS, RESPONSE, method)
  rollout = evidence.rollout._replace(mask=WRITTEN)
  asked = method.needs
  taught = Evidence.of(
    rollout, evidence.scores, asked, measures=evidence.measures, step=0, key=evidence.key
  )
  return taught, targets


def top_sum(P, Q):
  """Σ q log(q / p) over the teacher's K best, as they are."""
  best = np.argsort(-np.asarray(Q), axis=-1)[..., :K]
  own, other = (jnp.take_along_axis(x, best, -1) for x in (P, Q))
  return (jnp.exp(other) * (other - own)).sum(-1)


def loss_of(out, answer):
  """The printed loss: `answer` of a rejected token, from both whole distributions and log p of the token."""

  def loss(logits):
    P = jax.nn.log_softmax(logits)
    own = jnp.take_along_axis(P, jnp.asarray(RESPONSE)[..., None], -1)[..., 0]
    accepted = -(q - p) * own
    student = jnp.where(out, answer(P, own), accepted)
    each = jnp.where(MASK, student, 1e-3 * -own)  # what counts and is no token of the student
    return jnp.where(WRITTEN, each, 0).sum() / WRITTEN.sum()

  return jax.value_and_grad(loss)(jnp.asarray(STUDENT_LOGITS))


def rejected(terms):
  """Tokens that the policy gradient does not give their own gap."""
  return MASK & ~np.isclose(terms[0].coefficient * WRITTEN.sum(), q - p, rtol=1e-9)


ANSWERS = {
  'forward kl': lambda P, own: top_sum(P, Q),
  'forward kl as a number': lambda P, own: stop(top_sum(P, Q)) * own,
  'clipped': lambda P, own: -np.maximum(q - p, -1.6) * own,
  'masked': lambda P, own: 0.0 * own,
}


@pytest.mark.parametrize('outliers', ANSWERS)
def test_it_is_the_published_formula(outliers):
  method = tropd(k=K, outliers=outliers)
  evidence, targets = with_prefix(method)
  terms = weigh(method)(evidence)
  out = rejected(terms)
  if outliers == 'clipped':  # there only what lies below the floor is seen to be rejected
    assert out.any() and (q - p < -1.6)[out].all()
  else:
    assert 3 < out.sum() < MASK.sum() - 3
  got = through_the_pass(STUDENT_LOGITS, RESPONSE, targets, terms)
  same(got, loss_of(out, ANSWERS[outliers]))


@pytest.mark.parametrize('outliers', ['masked', 'clipped'])
def test_a_floor_rejects_below_it(outliers):
  method = tropd(outliers=outliers, floor=-0.5)
  evidence, targets = with_prefix(method)
  answer = {'masked': 0.0, 'clipped': 0.5}[outliers]
  got = through_the_pass(STUDENT_LOGITS, RESPONSE, targets, weigh(method)(evidence))
  same(got, loss_of(q - p < -0.5, lambda P, own: answer * own))


def test_a_token_is_accepted_as_often_as_speculative_decoding_would():
  """At the rate min(1, q / p): always where the teacher likes it at least as much, within four deviations elsewhere."""
  method = tropd(prefix=None, outliers='masked')
  evidence, _ = from_logits(*LOGITS, RESPONSE, method)
  program, count = weigh(method), 400
  keys = jax.random.split(jax.random.key(7), count)
  draw = jax.vmap(lambda key: program(evidence._replace(key=key))[0].coefficient != 0)
  rate = np.asarray(draw(keys)).mean(axis=0)
  want = np.minimum(1.0, np.exp(q - p))
  assert (rate[MASK & (q >= p)] == 1).all() and not rate[~MASK].any()
  deviation = np.sqrt(want * (1 - want) / count)
  assert (np.abs(rate - want) <= 4 * deviation + 1e-12)[MASK].all()


def test_the_random_control_rejects_a_part_of_every_response():
  method = tropd(k=K, prefix=None, outliers='masked', at_random=0.3)
  evidence, _ = from_logits(*LOGITS, RESPONSE, method)
  out = MASK & (np.asarray(weigh(method)(evidence)[0].coefficient) == 0)
  np.testing.assert_array_equal(out.sum(axis=1), -(-3 * MASK.sum(axis=1) // 10))


def test_where_nothing_is_rejected_it_is_opd():
  """No floor reaches the gaps, or the student is its teacher: then no draw rejects."""
  want = ours(opd())[1]
  np.testing.assert_allclose(ours(tropd(k=K, floor=-99.0))[1], want, rtol=0, atol=1e-15)
  agreed = ours(tropd(k=K), student=TEACHER_LOGITS)[1]
  np.testing.assert_allclose(agreed, 0.0, rtol=0, atol=1e-15)


def test_the_teacher_begins_and_the_prefix_counts():
  mix = tropd().rollout
  assert mix.prefix_counts and mix.prefix == Ramp(begin=8096, end=0, steps=200, shape='cosine')
  assert tropd(**VARIANTS['outliers only']).rollout.prefix is None


def test_settings_without_meaning_are_refused():
  with pytest.raises(ValueError, match='outliers is one of forward kl'):
    tropd(outliers='ignored')
  with pytest.raises(ValueError, match='give one of them'):
    tropd(floor=-1.0, at_random=0.1)
