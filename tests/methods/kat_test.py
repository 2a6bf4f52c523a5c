"""KAT against its rule in loops, over batches that fill its memory: windows, the queue, the threshold and the cut."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from opd_jax.losses import vocabulary
from opd_jax.losses.vocab_shard import Target
from opd_jax.method import Evidence
from opd_jax.methods.kat import kat
from opd_jax.types import STUDENT, Prompts, Rollout, Scores

W, T, EXEMPT, ETA, BUFFER, ENTRIES, WARMUP = 3, 2, 2, 0.3, 7, 4, 2
LENGTHS = (14, 0, 9, 14, 4, 12)  # an empty row, and one too short for a window
B, R = len(LENGTHS), 14
MASK = np.arange(R) < np.array(LENGTHS)[:, None]


def method():
  return kat(
    window=W, windows=T, eta=ETA, exempt=EXEMPT, warmup=WARMUP, buffer=BUFFER, min_entries=ENTRIES
  )


@pytest.fixture(autouse=True)
def float64():
  with jax.enable_x64(True):
    yield


def evidence_of(gap, memory, step) -> Evidence:
  number, tokens = np.arange(B), np.zeros((B, R), np.int32)
  zeros = np.zeros((B, R))
  prompt = Prompts(tokens=number[:, None], length=number * 0 + 1, row=number, group=number // 2)
  rollout = Rollout(
    prompt=prompt,
    response=tokens,
    mask=MASK,
    writer=np.where(MASK, STUDENT, 0),
    behaviour_logp=zeros,
    logp=zeros,
    entropy=None,
    top_k=None,
    ended_by=number * 0 + 1,
    version=number * 0,
    reward=np.full(B, np.nan),
  )
  scores = {name: Scores(logp=zeros, known=MASK | True) for name in ('student', 'teacher')}
  return Evidence.of(
    rollout,
    scores,
    method().needs,
    measures={'gap': jnp.asarray(np.where(MASK, gap, 0.0))},
    memory=jnp.asarray(memory),
    step=jnp.int32(step),
    key=jax.random.key(0),
  )


class Rule:
  """The paper's rule, position by position; its queue is a list."""

  def __init__(self):
    self.queue: list[float] = []

  def kept(self, gap, step):
    keep, minima = MASK.copy(), []
    active = step >= WARMUP and len(self.queue) >= ENTRIES
    threshold = np.quantile(self.queue, 1 - ETA) if active else -np.inf
    for row, length in enumerate(LENGTHS):
      means, run = [], 0
      for t in range(EXEMPT + W, length + 1):  # the paper counts tokens from one
        means.append(gap[row, t - W : t].mean())
        run = run + 1 if means[-1] < threshold else 0
        if run == T:
          keep[row, t - (T - 1) - W :] = False
          break
      ends = range(EXEMPT + W, length + 1)
      minima += [min(gap[row, t - W : t].mean() for t in ends)] if length >= EXEMPT + W else []
    self.queue = ([*np.float32(minima), *self.queue])[:BUFFER]
    return keep


def batches(count):
  """Gaps that fall somewhere in most rows, so that rows are cut at different places."""
  rng = np.random.RandomState(4)
  for step in range(count):
    gap = rng.gamma(1.0, size=(B, R))
    for row in range(B):
      begin = rng.randint(3, R)
      gap[row, begin : begin + 6] *= 0.05
    yield step, gap


def test_the_cut_and_the_queue_are_the_papers_over_batches():
  kept, rule, memory, cut = method(), Rule(), method().memory, 0
  weigh, remember = jax.jit(kept.weigh), jax.jit(kept.remember)
  for step, gap in batches(8):
    evidence = evidence_of(gap, memory, step)
    (weighted,) = weigh(evidence)
    want = rule.kept(gap, step)
    np.testing.assert_allclose(weighted.coefficient, want / want.sum(), rtol=1e-11)
    cut += int((MASK & ~want).sum())
    memory = remember(evidence)
    assert memory.shape == (BUFFER,) and memory.dtype == np.float32
    np.testing.assert_allclose(memory[: len(rule.queue)], rule.queue, rtol=1e-6)
    assert np.isnan(memory[len(rule.queue) :]).all()
  assert cut > 10  # the rule was at work


def test_nothing_is_cut_before_the_warmup_or_with_few_memories():
  gap = next(batches(1))[1]
  full = np.linspace(1, 2, BUFFER).astype(np.float32)  # every window lies below
  few = np.where(np.arange(BUFFER) < ENTRIES - 1, full, np.nan)
  coefficient = lambda memory, step: method().weigh(evidence_of(gap, memory, step))[0].coefficient
  everything = MASK / MASK.sum()
  for memory, step in ((full, WARMUP - 1), (few, WARMUP), (method().memory, 99)):
    np.testing.assert_allclose(coefficient(memory, step), everything)
  assert (np.asarray(coefficient(full, WARMUP)) == 0)[MASK].any()


def test_the_loss_is_the_reverse_kl_of_what_is_kept(single):
  """The measure is the value of the term, so a cut can be written from log-probabilities alone."""
  rng, size = np.random.RandomState(1), 5
  student, teacher = rng.randn(2, B, R, size)
  head, response = jnp.eye(size), jnp.zeros((B, R), jnp.int32)
  targets = {'teacher': Target(hidden=jnp.asarray(teacher), head=head)}
  log_q = jax.nn.log_softmax(teacher)
  gaps = lambda log_p: (jnp.exp(log_p) * (log_p - log_q)).sum(-1)
  kept = method()
  measured = vocabulary.measured(
    jnp.asarray(student),
    head,
    response,
    targets,
    kept.needs.measures,
    layout=single,
    mask=jnp.asarray(MASK),
  )['gap']
  gap = np.asarray(gaps(jax.nn.log_softmax(student)))
  np.testing.assert_allclose(measured, np.where(MASK, gap, 0.0), rtol=1e-11)
  rule = Rule()
  rule.queue = [2.0, 1.2, 1.1, 1.0, 0.9]
  memory = np.float32([*rule.queue, np.nan, np.nan])
  terms = kept.weigh(evidence_of(measured, memory, WARMUP))
  want = rule.kept(gap, WARMUP)
  assert (MASK & ~want).any()

  def ours(states):
    return vocabulary.weighted_sum(states, head, response, targets, terms, layout=single)[0]

  def papers(states):
    return jnp.where(want, gaps(jax.nn.log_softmax(states)), 0.0).sum() / want.sum()

  got, right = (jax.value_and_grad(each)(jnp.asarray(student)) for each in (ours, papers))
  np.testing.assert_allclose(got[0], right[0], rtol=1e-11)
  np.testing.assert_allclose(got[1], right[1], atol=1e-12)


def test_numbers_without_meaning_are_refused():
  with pytest.raises(ValueError, match='min_entries at most buffer'):
    kat(buffer=3, min_entries=4)
