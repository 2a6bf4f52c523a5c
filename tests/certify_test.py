"""A certificate says what it measured: right ones hold, wrong claims fail, and the command tells by its exit status."""

import dataclasses
import json
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from opd_jax import cli, rollouts, trust
from opd_jax.certify import bigram, certificates, expectations, keys
from opd_jax.certify.estimators import checked_terms
from opd_jax.certify.gradients import by_method
from opd_jax.certify.terms import agrees
from opd_jax.claims import Nothing, Unbiased
from opd_jax.losses import advantages, selectors, weights
from opd_jax.losses.divergences import ForwardKL, ReverseKL
from opd_jax.losses.normalisers import per_token
from opd_jax.losses.terms import K2, Candidates, OnToken, PolicyGradient
from opd_jax.method import Method
from opd_jax.methods.opd import opd
from opd_jax.static import static

MAKERS = certificates.makers()
SEARCHED = ('opd', 'opd_plus', 'gkd', 'vopd')  # sampled, weighted, of a data set, with a measure


@pytest.fixture(autouse=True)
def float64():
  with jax.enable_x64(True):
    yield


def weighted(weigh_more, **settings) -> Method:
  """OPD whose tokens count as `weigh_more(evidence)` says, and which claims to be OPD all the same."""

  def weigh(evidence):
    gap = advantages.log_ratio(evidence.teacher.logp, evidence.student.logp)
    return (PolicyGradient()(per_token(evidence.mask) * weigh_more(evidence) * gap),)

  return Method(
    rollout=rollouts.student(), weigh=weigh, claim=Unbiased(divergence=ReverseKL()), paper='none',
    **settings,
  )  # fmt: skip


def certified(method: Method) -> certificates.Line:
  return certificates.certify_method('test', method)


# --- the world ------------------------------------------------------------------------------------


def test_the_enumeration_covers_every_batch_once():
  world = bigram.batched()
  log_probs = np.asarray(bigram.row_log_probs(certificates.ON_POLICY, world.student, world))
  assert log_probs.shape == (4, 9)
  np.testing.assert_allclose(np.exp(log_probs).sum(axis=1), 1.0, rtol=1e-12)
  assert world.chunk == 81 and len(bigram.single().responses) == 125


def test_a_group_holds_right_and_wrong_rows_and_one_that_nobody_verified():
  world = bigram.batched()
  reward = world.reward(jnp.asarray([[0, 0], [0, 1], [0, 1], [0, 1]]))
  np.testing.assert_array_equal(reward, [1, 0, 1, np.nan])


def test_the_whole_of_a_writers_mix_is_enumerated():
  mix = rollouts.student(prefix=1.0)
  writer, counts = bigram.written(mix, bigram.batched())
  assert (writer == [2, 1]).all() and (counts == [False, True]).all()
  assert certified(dataclasses.replace(opd(), rollout=mix)).bias < certificates.EXACT
  taught = dataclasses.replace(mix, prefix_counts=True)
  writer, counts = bigram.written(taught, bigram.batched())
  assert (writer == [2, 1]).all() and counts.all()


@pytest.mark.parametrize('name', SEARCHED)
def test_the_search_follows_the_gradient_of_whole_batches(name):
  """With the other question's rows standing still, the first question's gradient is the same, to the last digits."""
  method, world = MAKERS[name](), bigram.batched()
  gradient, writers = by_method(method), method.rollout
  ((mean, _),) = expectations.moments((gradient,), writers, world)
  still = expectations.of_one_question(gradient, writers, world.student, world)
  np.testing.assert_allclose(still, mean[0], atol=1e-14)


# --- keys -----------------------------------------------------------------------------------------


@pytest.mark.parametrize('rate', (0.05, 0.3, 0.5, 0.75))
def test_the_keys_make_a_mean_an_expectation(rate):
  def draws(key):
    first, second = jax.random.split(jax.random.fold_in(key, 7))
    return jax.random.bernoulli(first, rate, (4, 3)), jax.random.uniform(second, (5, 2))

  kept, uniform = jax.vmap(draws)(keys.stratified())
  np.testing.assert_allclose(kept.astype(float).mean(axis=0), rate, rtol=1e-12)
  np.testing.assert_allclose(uniform.mean(axis=0), 0.5, rtol=1e-12)
  before = uniform[..., 0] < uniform[..., 1]
  np.testing.assert_allclose(before.astype(float).mean(axis=0), 0.5, rtol=1e-12)
  assert len(np.unique(np.asarray(kept).reshape(keys.COUNT, -1), axis=0)) > 1


@pytest.mark.parametrize('rate', (0.3, 0.5))
def test_a_random_mask_divided_by_its_rate_holds(rate):
  draw = lambda evidence: jax.random.bernoulli(evidence.key, rate, evidence.mask.shape)
  line = certified(weighted(lambda evidence: draw(evidence) / rate))
  assert line.holds and line.bias < certificates.EXACT
  assert not certified(weighted(draw)).holds


def test_a_random_choice_of_tokens_divided_by_its_rate_holds():
  mask = lambda evidence: selectors.random_mask(evidence.key, evidence.mask, fraction=0.5) / 0.5
  assert certified(weighted(mask)).holds


# --- methods --------------------------------------------------------------------------------------


def pytest_generate_tests(metafunc):
  """Methods as they come; their variants where `--variants` asks for them: `opd certify --all` has them, too."""
  if 'certified_name' in metafunc.fixturenames:
    variants = metafunc.config.getoption('--variants')
    names = [name for name in MAKERS if variants or ',' not in name]
    metafunc.parametrize('certified_name', names)


def test_every_method_holds(certified_name):
  name = certified_name
  line = certificates.certify_method(name, MAKERS[name]())
  assert line.holds, line
  assert all(np.isfinite(line[3:7])), line


def test_variants_come_from_the_files_of_the_methods():
  assert {'aopd, zero gate', 'aopd, accuracy filter', 'exopd, exact', 'iw_opd, mean one'} <= {
    *MAKERS
  }


def test_a_weight_by_reward_is_not_unbiased():
  """SCOPE-like: in a world of one unrewarded row it would be OPD, and hold."""

  def by_reward(evidence):
    right = weights.right(evidence.rollout.reward)
    return jnp.where(right, 2.0, 1.0)[:, None]

  line = certified(weighted(by_reward))
  assert not line.holds and line.bias > 0.1


def test_a_group_baseline_of_rewards_is_seen():
  def by_group(evidence):
    rollout = evidence.rollout
    return 1.0 + weights.group_advantage(rollout.reward, rollout.prompt.group)[:, None]

  assert not certified(weighted(by_group)).holds


def test_a_method_that_lies_about_itself_fails():
  line = certified(dataclasses.replace(opd(), claim=Unbiased(divergence=ForwardKL())))
  assert not line.holds and line.bias > 0.1


def test_a_shift_by_one_would_be_seen():
  """The commonest bug: the teacher's answer for the next token. Its gradient points elsewhere."""
  right = opd()

  def weigh(evidence):
    teacher = evidence.scores['teacher']
    shifted = teacher._replace(logp=jnp.roll(teacher.logp, 1, axis=1))
    return right.weigh(evidence._replace(scores={**evidence.scores, 'teacher': shifted}))

  assert not certified(dataclasses.replace(right, weigh=weigh)).holds


def test_nothing_is_reported_with_its_reason_and_never_fails():
  line = certified(dataclasses.replace(weighted(lambda _: -1.0), claim=Nothing('it runs away')))
  assert line.holds and line.claim == 'nothing: it runs away' and line.cosine < -0.99


def test_memory_is_what_the_method_begins_with():
  remembered = {'memory': {'scale': np.float64(1.0)}, 'remember': lambda evidence: evidence.memory}
  assert certified(weighted(lambda evidence: evidence.memory['scale'], **remembered)).holds
  remembered['memory'] = {'scale': np.float64(1.5)}
  assert not certified(weighted(lambda evidence: evidence.memory['scale'], **remembered)).holds


def test_a_coefficient_is_no_part_of_the_claim_that_it_would_break():
  assert certified(opd(coefficient=2.0)).holds
  assert isinstance(opd(coefficient=-1.0).claim, Nothing)


# --- estimators and terms -------------------------------------------------------------------------


def test_what_is_known_to_be_bad_is_certified_as_bad():
  lines = {line.name: line for line in certificates.known_bad(bigram.single())}
  assert len(lines) == 16 and all(line.holds for line in lines.values())
  assert {line.claim for line in lines.values()} == {
    'biased',
    'zero on average, noise in each',
    'no gradient at all',
    'turned against the true gradient',
    'biased by the gradient of the kept mass',
  }
  assert lines['reverse_kl, raw top 2'].bias == pytest.approx(0.4248, abs=1e-4)
  assert lines['forward_kl: naive advantage'].cosine == pytest.approx(-0.9505, abs=1e-4)
  assert lines['forward_kl, clamped per entry'].cosine == pytest.approx(-0.3594, abs=1e-4)


def test_a_term_with_a_wrong_gradient_fails():
  @jax.custom_jvp
  def wrong(logp):
    return -logp

  wrong.defjvp(lambda primals, tangents: (-primals[0], -0.9 * tangents[0]))

  @static
  class Wrong(OnToken):
    def value(self, logp, inputs):
      return wrong(logp)

  assert not agrees(Wrong())
  assert agrees(K2()) and agrees(Candidates())


def test_every_kind_of_term_is_checked():
  names = {name for name, _ in checked_terms()}
  assert {'Candidates', 'jensen_shannon(0.5) on full, at temperature 0.7'} <= names
  assert any('ratio' in name for name in names) and any('reference' in name for name in names)


# --- the command ----------------------------------------------------------------------------------


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


def test_the_command_certifies_a_module_of_your_own(capsys, monkeypatch):
  module = types.ModuleType('mine')

  def mine(*, coefficient: float = 1.0):
    """A method of one's own."""
    claim = Nothing('nobody has looked')
    return dataclasses.replace(opd(coefficient=coefficient), claim=claim)

  vars(module).update(mine=mine, VARIANTS={'twice': {'coefficient': 2.0}})
  monkeypatch.setattr(trust, 'imported', lambda name: module)
  with jax.enable_x64(False):
    assert cli.main(['certify', '--module', 'mine']) == 0
    out = capsys.readouterr().out
    assert 'mine, twice' in out and 'nothing: nobody has looked' in out
    assert cli.main(['certify', '--module', 'mine', 'mine, twice', '--json']) == 0
    assert [line['name'] for line in json.loads(capsys.readouterr().out)] == ['mine, twice']
    assert cli.main(['certify', '--module', 'mine', 'opd']) == 2
