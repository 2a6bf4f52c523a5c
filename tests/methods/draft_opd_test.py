"""Draft-OPD against its formula, given which proposals were kept; and the law by which they are."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from evidence_worlds import (
  MASK,
  REFERENCE_LOGITS,
  RESPONSE,
  ROWS,
  STUDENT_LOGITS,
  TEACHER_LOGITS,
  R,
  from_logits,
  ours,
  paper,
  same,
  through_the_pass,
  weigh,
  with_forks,
)

from opd_jax.claims import Converges
from opd_jax.forks import Forks
from opd_jax.losses.divergences import ForwardKL, ReverseKL
from opd_jax.method import as_asked
from opd_jax.methods.draft_opd import VARIANTS, draft_opd
from opd_jax.types import STUDENT

LOGITS = STUDENT_LOGITS, TEACHER_LOGITS, REFERENCE_LOGITS
K = 2  # proposals: small, so that tokens behind whole blocks are in the batch


def gap_of():
  """log q(y) - log p(y) of the batch."""

  def log(logits):
    logs = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    return np.take_along_axis(logs, RESPONSE[..., None], -1)[..., 0]

  return log(TEACHER_LOGITS) - log(STUDENT_LOGITS)


def forward(of):
  return (jnp.exp(of.Q) * (of.Q - of.P)).sum(-1)


def reverse(of):
  return (jnp.exp(of.P) * (of.P - of.Q)).sum(-1)


def walk(mask, kept, proposals, decay):
  """What a speculative sampler would have made of these texts: kept tokens, and the weights of refused ones."""
  good, weight = np.zeros(mask.shape, bool), np.zeros(mask.shape)
  for row in range(len(mask)):
    k = 1  # place in the block, from one
    for column in np.flatnonzero(mask[row]):
      if k > proposals:  # the target's own token behind a whole block
        k = 1
      elif kept[row, column]:
        good[row, column], k = True, k + 1
      else:
        weight[row, column], k = decay ** (k - 1), 1
  return good, weight


CASES = {
  'default': ({}, forward, reverse),
  'no decay': (VARIANTS['no decay'], forward, reverse),
  'reverse everywhere': (VARIANTS['reverse everywhere'], reverse, reverse),
  'forward everywhere': (VARIANTS['forward everywhere'], forward, forward),
  'weighted': ({'kept_weight': 3.0, 'refused_weight': 0.5}, forward, reverse),
}


@pytest.mark.parametrize('settings, on_kept, on_refused', CASES.values(), ids=CASES)
def test_on_text_it_is_the_published_formula(settings, on_kept, on_refused):
  method = draft_opd(proposals=K, blocks=0, **settings)
  evidence, targets = from_logits(*LOGITS, RESPONSE, method)
  terms = weigh(method)(evidence)
  kept, weight = (np.asarray(term.coefficient) for term in terms)
  good, decayed = walk(MASK, kept != 0, K, settings.get('decay', 0.8))
  np.testing.assert_array_equal(good, kept != 0)
  np.testing.assert_array_equal(decayed != 0, weight != 0)
  assert good.sum() > 3 and (decayed > 0).sum() > 3 and (MASK & ~good & (decayed == 0)).any()
  a, b = settings.get('kept_weight', 1.0), settings.get('refused_weight', 1.0)

  def formula(of):
    mean = jnp.where(good, on_kept(of), 0).sum() / good.sum()
    weighted = (decayed * on_refused(of)).sum() / decayed.sum()
    return (a * mean + b * weighted) / (a + b)

  same(through_the_pass(STUDENT_LOGITS, RESPONSE, targets, terms), paper(formula))


def test_a_token_of_the_teacher_was_proposed_as_often_as_both_laws_say():
  """At the rate min(1, p / q), given the text; the first token of a response is always judged."""
  method, count = draft_opd(proposals=K, blocks=0), 400
  evidence, _ = from_logits(*LOGITS, RESPONSE, method)
  program = weigh(method)
  keys = jax.random.split(jax.random.key(7), count)
  draw = jax.vmap(lambda key: program(evidence._replace(key=key))[0].coefficient != 0)
  rate, want = np.asarray(draw(keys)).mean(axis=0), np.minimum(1.0, np.exp(-gap_of()))
  first = MASK & (np.cumsum(MASK, axis=1) == 1)
  deviation = np.sqrt(want * (1 - want) / count)
  assert (np.abs(rate - want) <= 4 * deviation + 1e-12)[first].all()
  assert (rate[first] > 0).all() and (rate[first] < 1).any()


def test_where_student_and_teacher_agree_all_is_kept_and_blocks_are_whole():
  method = draft_opd(proposals=K, blocks=3)
  evidence, _ = from_logits(TEACHER_LOGITS, TEACHER_LOGITS, REFERENCE_LOGITS, RESPONSE, method)
  assert method.forks is not None
  forks = method.forks.plan(as_asked(evidence, method.needs))
  for row in range(ROWS):
    begins = np.flatnonzero(MASK[row])[:: K + 1].tolist()
    planned = np.asarray(forks.at)[np.asarray(forks.row) == row].tolist()
    assert sorted(planned) == begins
  np.testing.assert_array_equal(forks.writer, STUDENT)
  np.testing.assert_array_equal(forks.first, -1)
  gradient = ours(draft_opd(blocks=0), student=TEACHER_LOGITS)[1]
  np.testing.assert_allclose(gradient, 0.0, atol=1e-15)


def test_random_anchors_are_any_tokens():
  method = draft_opd(proposals=K, blocks=R, anchors='random')
  evidence, _ = from_logits(*LOGITS, RESPONSE, method)
  assert method.forks is not None
  forks = method.forks.plan(as_asked(evidence, method.needs))
  planned = np.zeros(MASK.shape, bool)
  row = np.asarray(forks.row)
  planned[row[row >= 0], np.asarray(forks.at)[row >= 0]] = True
  np.testing.assert_array_equal(planned, MASK)


def test_blocks_that_are_proposed_anew_weigh_every_refused_proposal():
  """Kept up to the first that is refused, and refused from there on, at decay to the power of the place."""
  points, length, decay = ((0, 2), (0, 5), (3, 1), (4, 0), (5, 1)), 4, 0.7
  forks = Forks(
    row=np.array([row for row, _ in points], np.int32),
    at=np.array([at for _, at in points], np.int32),
    first=np.full(len(points), -1, np.int32),
    writer=np.full(len(points), STUDENT, np.int32),
  )
  method = draft_opd(proposals=length, decay=decay)
  evidence = with_forks(method, forks, length=length)
  kept, weight = (np.asarray(term.coefficient) for term in weigh(method)(evidence))
  assert not kept[:ROWS].any() and not weight[:ROWS].any()
  good, decayed = np.zeros(kept.shape, bool), np.zeros(kept.shape)
  for number, (_, at) in enumerate(points):
    r = int((kept[ROWS + number] != 0).sum())
    good[ROWS + number, at : at + r] = True
    decayed[ROWS + number, at + r : at + length] = decay ** np.arange(r, length)
  assert 0 < good.sum() < len(points) * length
  np.testing.assert_allclose(kept, 0.5 * good / good.sum(), atol=1e-15)
  np.testing.assert_allclose(weight, 0.5 * decayed / decayed.sum(), atol=1e-15)


def test_the_teacher_writes_from_proposals_and_only_blocks_make_forks():
  method = draft_opd(proposals=5)
  assert (method.rollout.teacher, method.rollout.proposals) == (1.0, 5)
  assert method.forks is not None and method.forks.tokens == 5
  assert draft_opd(**VARIANTS['first refused only']).forks is None
  assert method.claim == Converges()
  assert draft_opd(kept=ReverseKL(), refused=ForwardKL()).needs.teacher.hidden


@pytest.mark.parametrize(
  'settings, message',
  [
    ({'proposals': 0}, 'proposals must be at least 1'),
    ({'blocks': -1}, 'blocks not negative'),
    ({'decay': 0.0}, 'decay in'),
    ({'kept_weight': 0.0, 'refused_weight': 0.0}, 'one of them above 0'),
    ({'anchors': 'errors'}, "anchors is 'blocks' or 'random'"),
    ({'anchors': 'random', 'blocks': 0}, 'blocks is 0'),
  ],
)
def test_settings_without_meaning_are_refused(settings, message):
  with pytest.raises(ValueError, match=message):
    draft_opd(**settings)
