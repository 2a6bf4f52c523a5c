"""The safe losses on a top k against their formulas, and what the plain sum adds to them."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from evidence_worlds import K, V, by_sequence, ours, paper, same, stop

from opd_jax.certify import certificates
from opd_jax.losses.divergences import ReverseKL
from opd_jax.losses.rest_rules import OutsideMass, Stopped, Unclosed
from opd_jax.methods.safe_top_k import VARIANTS, safe_top_k


def among_best(log, k=K):
  """True for the k best entries."""
  return log >= jax.lax.top_k(log, k)[0][..., -1:]


def inside(of, which, k=K):
  student, teacher = among_best(stop(of.P), k), among_best(of.Q, k)
  return student if which == 'student' else student & teacher


def kept(x, where):
  return jnp.where(where, x, 0.0).sum(-1)


def renormalised(of, where):
  mass = lambda log: jnp.where(where.any(-1), kept(jnp.exp(log), where), 1.0)[..., None]
  p, q = jnp.exp(of.P) / mass(of.P), jnp.exp(of.Q) / mass(of.Q)
  return kept(p * jnp.log(p / q), where)


def tail(of, where):
  p, q = 1 - kept(jnp.exp(of.P), where), 1 - kept(jnp.exp(of.Q), where)
  return raw(of, where) + p * jnp.log(p / q)


def stopped(of, where):
  return -kept(jnp.exp(of.P) * stop(of.Q - of.P), where)


def raw(of, where):
  return kept(jnp.exp(of.P) * (of.P - of.Q), where)


CASES = {
  'renormalised': ({}, renormalised, 'both'),
  'student': (VARIANTS['student'], renormalised, 'student'),
  'stopped': (VARIANTS['stopped'], stopped, 'student'),
  'tail': (VARIANTS['tail'], tail, 'student'),
  'sampled': (VARIANTS['sampled'], lambda of, where: -stop(of.q - of.p) * of.p, 'student'),
  'raw': (VARIANTS['raw'], raw, 'student'),
}


@pytest.mark.parametrize('settings, formula, which', CASES.values(), ids=CASES)
def test_it_is_the_published_formula(settings, formula, which):
  want = paper(lambda of: by_sequence(of.mask, formula(of, inside(of, which))))
  same(ours(safe_top_k(k=K, **settings)), want)


def test_the_plain_sum_adds_the_gradient_of_the_kept_mass():
  """All there is between the mistake and the safe form, and nothing where every entry is kept."""
  mass = lambda of: by_sequence(of.mask, kept(jnp.exp(of.P), inside(of, 'student')))
  gradient = lambda k, name: np.asarray(ours(safe_top_k(k=k, **VARIANTS[name]))[1])
  added = gradient(K, 'raw') - gradient(K, 'stopped')
  np.testing.assert_allclose(added, paper(mass)[1], rtol=0, atol=1e-13)
  assert np.abs(added).max() > 1e-3
  np.testing.assert_allclose(gradient(V, 'raw'), gradient(V, 'stopped'), rtol=0, atol=1e-15)


@pytest.mark.parametrize(
  'ratio, safe, plain', [(0.9, 1, 1), (1.2, -1, 1), (2.7, -1, 1), (2.8, -1, -1)]
)
def test_a_token_rises_where_q_is_above_p_and_in_the_plain_sum_where_it_is_above_e_p(
  ratio, safe, plain
):
  """The sign of the derivative in the log p of an entry, e = 2.718…"""
  log_p, outside = jnp.log(jnp.array([0.2])), OutsideMass()
  for rest, sign in ((Stopped(), safe), (Unclosed(), plain)):
    value = functools.partial(rest.value, ReverseKL(), log_q=log_p + np.log(ratio), outside=outside)
    assert np.sign(jax.grad(lambda log_p, value=value: value(log_p))(log_p)) == sign


def test_the_certificate_shows_where_the_mistake_ends():
  """Two of three tokens are compared, the third follows: the safe sum ends at the teacher, the plain one elsewhere."""
  line = lambda name: certificates.certify_method(name, safe_top_k(k=2, **VARIANTS[name]))
  wrong, right = line('raw'), line('stopped')
  assert 'a known mistake' in wrong.claim and 'not compared' in right.claim
  assert wrong.bias == pytest.approx(0.205, abs=1e-3)
  assert wrong.fixed_point > 0.05 and right.fixed_point < certificates.FIXED
