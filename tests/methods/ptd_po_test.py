"""PTD-PO against its formula: the outcome of a group, the KL to the reference, and failed responses under a hint."""

import jax
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
  K,
  V,
  from_logits,
  ours,
  paper,
  same,
  stop,
  through_the_pass,
  weigh,
)

from opd_jax.method import Evidence
from opd_jax.methods.ptd_po import VARIANTS, ptd_po

VERIFIED = lambda group: [
  r for r, its in zip(REWARDS, GROUPS, strict=True) if its == group and np.isfinite(r)
]
MEANS = np.array([np.mean(VERIFIED(group)) for group in GROUPS])
SPREADS = np.array([np.std(VERIFIED(group)) for group in GROUPS])
OUTCOME = np.nan_to_num((np.array(REWARDS) - MEANS) / (SPREADS + 1e-6))[:, None]


def divergence(of):
  """JSD on the best K of either model and one entry for the rest, as a sum over the whole vocabulary."""
  best = lambda log: jax.nn.one_hot(jax.lax.top_k(stop(log), K)[1], V).sum(-2)
  inside = (best(of.P) + best(of.Q)) > 0
  rest = lambda log: jnp.where(inside, 0, jnp.exp(log)).sum(-1, keepdims=True)
  closed = lambda log: jnp.concatenate([jnp.where(inside, jnp.exp(log), 0), rest(log)], -1)
  p, q = closed(of.P), closed(of.Q)
  safe = lambda x: jnp.where(x > 0, x, 1.0)
  m = (p + q) / 2
  return 0.5 * (p * jnp.log(safe(p) / safe(m)) + q * jnp.log(safe(q) / safe(m))).sum(-1)


def formula(weight, below, reference, judged=MASK):
  failed = judged & ((np.array(REWARDS) == 0) & (below > MEANS))[:, None]

  def loss(of):
    outcome = -jnp.exp(of.p - stop(of.p)) * OUTCOME
    kl = jnp.exp(of.r - of.p) - 1 - (of.r - of.p)
    reinforced = jnp.where(MASK, outcome + reference * kl, 0).sum() / MASK.sum()
    tutored = jnp.where(failed, divergence(of), 0).sum() / max(failed.sum(), 1)
    return reinforced + weight * tutored

  return loss


CASES = {
  'default': ({}, (0.5, 1.0, 0.01)),
  '8b': (VARIANTS['8b'], (0.05, 1.0, 0.01)),
  'hard questions': (VARIANTS['hard questions'], (0.5, 0.4, 0.01)),
  'no reference': (VARIANTS['no reference'], (0.5, 1.0, 0.0)),
}


@pytest.mark.parametrize('settings, papers', CASES.values(), ids=CASES)
def test_it_is_the_published_formula(settings, papers):
  same(ours(ptd_po(k=K, **settings)), paper(formula(*papers)))


def test_where_the_hint_is_missing_the_terms_of_the_reward_stay():
  method = ptd_po(k=K)
  logits = STUDENT_LOGITS, TEACHER_LOGITS, REFERENCE_LOGITS
  evidence, targets = from_logits(*logits, RESPONSE, method)
  known = np.zeros(RESPONSE.shape, bool)
  scores = {**evidence.scores, 'teacher': evidence.scores['teacher']._replace(known=known)}
  blind = Evidence.of(evidence.rollout, scores, method.needs, step=0, key=evidence.key)
  got = through_the_pass(STUDENT_LOGITS, RESPONSE, targets, weigh(method)(blind))
  same(got, paper(formula(0.5, 1.0, 0.01, judged=known)))
