"""A certificate says what it measured: right ones hold, wrong claims fail, and the command tells by its exit status."""

import dataclasses
import json

import jax
import pytest

from opd_jax import cli
from opd_jax.certify import bigram, certificates
from opd_jax.losses import divergences, terms
from opd_jax.methods.opd import opd


@pytest.fixture(autouse=True)
def float64():
  with jax.enable_x64(True):
    yield


def test_the_enumeration_covers_everything_once():
  here = bigram.world()
  chances = bigram._chances(certificates.ON_POLICY, here.student, here)
  assert len(here.responses) == bigram.V**bigram.T and abs(float(chances.sum()) - 1) < 1e-12


@pytest.mark.parametrize('name', certificates.makers())
def test_every_method_and_variant_holds(name):
  line = certificates.certify_method(name, certificates.makers()[name], bigram.world())
  assert line.holds, line


def test_a_method_that_lies_about_itself_fails():
  def opd_lying():
    return dataclasses.replace(opd(), descends=divergences.forward_kl())

  line = certificates.certify_method('test', opd_lying, bigram.world())
  assert not line.holds and line.bias > 0.1


def test_a_shift_by_one_would_be_seen():
  """The commonest bug: the teacher's answer for the next token. Its gradient points elsewhere."""

  def opd_shifted():
    right = opd()

    def weigh(evidence):
      teacher = evidence.teacher._replace(logp=jax.numpy.roll(evidence.teacher.logp, 1, axis=1))
      return right.weigh(evidence._replace(teacher=teacher))

    return dataclasses.replace(right, weigh=weigh)

  assert not certificates.certify_method('test', opd_shifted, bigram.world()).holds


def test_what_is_known_to_be_bad_is_certified_as_bad():
  lines = list(certificates.known_bad(bigram.world()))
  assert len(lines) >= 15 and all(line.holds for line in lines)
  assert {line.claim for line in lines} >= {
    'biased',
    'zero on average, noise in each',
    'no gradient at all',
    'turned against the true gradient',
    'biased by the gradient of the kept mass',
  }


def test_a_term_with_a_wrong_gradient_fails():
  @jax.custom_jvp
  def wrong(logp):
    return -logp

  wrong.defjvp(lambda primals, tangents: (-primals[0], -0.9 * tangents[0]))

  @jax.tree_util.register_static
  @dataclasses.dataclass(frozen=True, kw_only=True)
  class Wrong(terms.OnToken):
    def value(self, logp, inputs):
      return wrong(logp)

  here = bigram.world()
  assert not certificates.check_term('wrong', Wrong(), here).holds
  assert certificates.check_term('right', terms.k2(), here).holds


def test_the_command_prints_and_exits_by_the_result(capsys, monkeypatch):
  with jax.enable_x64(False):
    assert cli.main(['certify', 'seqkd']) == 0
    assert 'unbiased for forward_kl' in capsys.readouterr().out
    assert cli.main(['certify', 'seqkd', '--json']) == 0
    (line,) = json.loads(capsys.readouterr().out)
    assert line['holds'] and line['bias'] < 1e-12 and line['kind'] == 'method'
    assert cli.main(['certify', 'nonsense']) == 2
    assert "nothing is called 'nonsense'" in capsys.readouterr().err
    assert cli.main(['certify']) == 2
    monkeypatch.setattr(certificates, 'FIXED', -1.0)
    assert cli.main(['certify', 'seqkd']) == 1
    assert 'FAILS' in capsys.readouterr().out
