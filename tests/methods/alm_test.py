"""ALM against the gradient of its printed loss, chunk by chunk."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from chunk_worlds import CHUNKS, members, with_chunks
from evidence_worlds import MASK, RESPONSE, STUDENT_LOGITS, ours, paper, through_the_pass, weigh

from opd_jax.methods.alm import VARIANTS, alm

COUNTED = MASK & (CHUNKS >= 0)


def cross_entropy(student, teacher, *, temperature=100.0, eps=1e-6):
  """The loss of one chunk, as tokenkit has it."""
  a = jnp.minimum(teacher, 0) / temperature - eps
  b = jnp.minimum(student, 0) / temperature - eps
  return -(jnp.exp(a) * b + (1 - jnp.exp(a)) * jnp.log(-jnp.expm1(b)))


def printed(log_q, *, weight='chunk', **settings):
  def loss(logits):
    log = jax.nn.log_softmax(logits)
    log_p = jnp.take_along_axis(log, jnp.asarray(RESPONSE)[..., None], axis=-1)[..., 0]
    total, weights = 0.0, 0.0
    for where in members():
      w = len(where[0]) if weight == 'token' else 1
      total += w * cross_entropy(log_p[where].sum(), log_q[where].sum(), **settings)
      weights += w
    return total / weights

  return loss


CASES = {'published': {}, **VARIANTS}


@pytest.mark.parametrize('settings', CASES.values(), ids=CASES)
def test_its_gradient_is_that_of_the_published_loss(settings):
  method = alm(**settings)
  evidence, targets = with_chunks(method)
  got = through_the_pass(STUDENT_LOGITS, RESPONSE, targets, weigh(method)(evidence))[1]
  want = jax.grad(printed(np.asarray(evidence.teacher.logp), **settings))(
    jnp.asarray(STUDENT_LOGITS)
  )
  np.testing.assert_allclose(got, want, rtol=0, atol=1e-12)
  assert np.abs(np.asarray(want)).max() > 1e-5


def test_with_one_tokenizer_every_token_is_matched_by_itself():
  want = paper(lambda of: jnp.where(of.mask, cross_entropy(of.p, of.q), 0.0).sum() / of.mask.sum())
  np.testing.assert_allclose(ours(alm())[1], want[1], rtol=0, atol=1e-12)


def test_a_student_as_sure_as_its_teacher_stays():
  evidence, _ = with_chunks(alm())
  same = evidence.scores['student']._replace(known=evidence.scores['teacher'].known)
  scores = {'student': same, 'teacher': same._replace(chunk=jnp.asarray(CHUNKS))}
  (term,) = weigh(alm())(evidence._replace(scores=scores))
  np.testing.assert_array_equal(term.coefficient, 0.0)


def test_a_chunk_that_both_are_certain_of_has_a_finite_slope():
  evidence, _ = with_chunks(alm())
  zero = lambda scores: scores._replace(logp=jnp.zeros_like(scores.logp))
  scores = {name: zero(each) for name, each in evidence.scores.items()}
  (term,) = weigh(alm())(evidence._replace(scores=scores))
  assert np.isfinite(term.coefficient).all()


def test_settings_without_meaning_are_refused():
  with pytest.raises(ValueError, match='temperature and eps must be above 0'):
    alm(temperature=0.0)
