"""GOLD against its formula: joint probabilities at the end of each chunk, by name and by rank."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from chunk_worlds import members, with_chunks
from evidence_worlds import (
  MASK,
  RESPONSE,
  STUDENT_LOGITS,
  V,
  ours,
  same,
  stop,
  through_the_pass,
  weigh,
)

from opd_jax.losses.divergences import JensenShannon
from opd_jax.methods.gkd import gkd
from opd_jax.methods.gold import gold
from opd_jax.types import TopK

UNNAMED = 3  # the teacher's last entries are tokens that the student has not; so are its first for the teacher


def jensen_shannon(p, q):
  m = 0.5 * (p + q)
  kl = lambda x: x * (jnp.log(x) - jnp.log(m))
  return 0.5 * kl(p) + 0.5 * kl(q)


def name_of(entry):
  """The student's token of the teacher's entry; the first ones of the student have no namesake."""
  return entry + UNNAMED if entry + UNNAMED < V else -1


def published(joint):
  """Everything about every chunk, written out; the student's factors have no gradient, see the method."""
  named = [name_of(entry) for entry in range(V)]
  shared = [name for name in named if name >= 0]

  def loss(logits):
    whole = jax.nn.log_softmax(logits)
    log_p = jnp.take_along_axis(whole, jnp.asarray(RESPONSE)[..., None], axis=-1)[..., 0]
    total, count = 0.0, 0
    for row, at in members():
      end, before = (row[0], at[-1]), stop(log_p[row, at][:-1].sum())
      p, q = jnp.exp(whole[end] + before), jnp.exp(joint[end])
      by_name = sum(jensen_shannon(p[name], q[e]) for e, name in enumerate(named) if name >= 0)
      rest_p = jnp.sort(p[jnp.array([v for v in range(V) if v not in shared])])[::-1]
      rest_q = jnp.sort(q[jnp.array([e for e, name in enumerate(named) if name < 0])])[::-1]
      total += by_name + jnp.abs(rest_p - rest_q).sum()
      count += 1
    return total / count

  return jax.value_and_grad(loss)(jnp.asarray(STUDENT_LOGITS))


def test_it_is_the_published_formula():
  method = gold(k=V)
  evidence, targets = with_chunks(method)
  rng = np.random.RandomState(8)
  joint = np.log(rng.dirichlet(np.ones(V), MASK.shape) * rng.uniform(0.1, 1.0, (*MASK.shape, 1)))
  order = np.argsort(-joint, axis=-1)
  names = np.array([name_of(entry) for entry in range(V)])
  top = TopK(ids=names[order], logp=np.take_along_axis(joint, order, axis=-1))
  scores = {**evidence.scores, 'teacher': evidence.scores['teacher']._replace(top_k=top)}
  terms = weigh(method)(evidence._replace(scores=scores))
  got = through_the_pass(STUDENT_LOGITS, RESPONSE, targets, terms)
  same(got, published(joint))


def test_with_one_tokenizer_and_every_entry_it_is_gkd_on_the_students_text():
  same(ours(gold(k=V)), ours(gkd(divergence=JensenShannon(), student_fraction=1.0)))


def test_by_name_alone_is_the_first_of_both_terms():
  method, alone = gold(k=V), gold(k=V, unmatched=0.0)
  evidence, _ = with_chunks(method)
  first, (only,) = weigh(method)(evidence)[0], weigh(alone)(evidence)
  np.testing.assert_array_equal(first.coefficient, only.coefficient)
  np.testing.assert_array_equal(first.inputs['ids'], only.inputs['ids'])


def test_weights_without_meaning_are_refused():
  with pytest.raises(ValueError, match='weights must not be negative nor both 0'):
    gold(matched=0.0, unmatched=0.0)
