"""The laws of a batch, once for every kind of term: how it is cut, tiled or spread over devices does not matter.

Float64 shows it to twelve digits. In float32 two orders of a sum differ by rounding, and the bound is that of rounding:
depth · eps · Σ |terms|, where depth counts the operations that a number goes through. No machine has to agree with
another to less than that.
"""

import functools

import dense_reference
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import vocabulary_cases as cases
from vocabulary_cases import close, every_case, tiled, world

from opd_jax.data.prompts import left_padded
from opd_jax.inference import scorer
from opd_jax.losses.divergences import ForwardKL
from opd_jax.losses.normalisers import per_sequence
from opd_jax.losses.rest_rules import Renormalised
from opd_jax.losses.supports import TeacherTopK
from opd_jax.losses.terms import PolicyGradient
from opd_jax.losses.vocab_shard import Target
from opd_jax.models import presets, transformer
from opd_jax.sharding import mesh_layout
from opd_jax.training import gradient
from opd_jax.training.gradient import Batch
from opd_jax.types import NOBODY, STUDENT, Rollout, ScoreRequest, TopK

EPS = float(np.finfo(np.float32).eps)
ELEMENTARY = 32  # roundings of the functions of one entry: exp, log, and what stands around them
DEVICES = [{'fsdp': 8}, {'fsdp': 4, 'tensor': 2}]
LENGTHS = (6, 1, 0, 4, 6, 3, 5, 2)


CUTS = {'halves': [[0, 1, 2, 3], [4, 5, 6, 7]], 'combs': [[6, 4, 2, 0], [1, 3, 5, 7]]}


def in_parts(parts, hidden, head, response, targets, terms, **settings):
  """Loss and gradient, summed over parts of the rows."""
  loss, d_hidden, d_head = 0.0, np.zeros(hidden.shape, hidden.dtype), 0.0
  for rows in map(np.array, parts):
    few = {name: target._replace(hidden=target.hidden[rows]) for name, target in targets.items()}
    states, tokens, part = jax.tree.map(lambda x, rows=rows: x[rows], (hidden, response, terms))
    (value, _), (here, matrix) = tiled(states, head, tokens, few, part, **settings)
    loss, d_head, d_hidden[rows] = loss + value, d_head + matrix, here
  return loss, d_hidden, d_head


@functools.cache
def of_every_kind():
  (loss, _), gradients = tiled(*world(), every_case())
  return loss, *gradients


@pytest.mark.parametrize('parts', CUTS.values(), ids=CUTS)
def test_any_partition_and_tile_give_the_same_gradient(parts):
  with jax.enable_x64(True):
    close(in_parts(parts, *world(), every_case(), tile=5), of_every_kind())


@pytest.mark.parametrize('shape', DEVICES, ids=str)
def test_eight_devices_give_the_same_gradient(shape):
  with jax.enable_x64(True):
    (loss, _), gradients = tiled(*world(), every_case(), layout=mesh_layout(**shape))
    close((loss, *gradients), of_every_kind())


def rounding(hidden, head, response, targets, terms):
  """How far float32 may be from the truth: of the loss, d hidden and d head.

  A logit is a sum of D products of size |h| |w|, a normaliser a sum of V, the loss and d head sums over all tokens: so
  many roundings lie on the longest way to a number. One of a logit moves log p by as much as the logit is large, hence
  1 + that size. The terms are what the gradient of the logits is a difference of: coefficient times p, q, or one.
  """
  magnitude = lambda states, matrix: float((np.abs(states) @ np.abs(matrix)).max())
  teacher = targets['teacher']
  size = max(magnitude(hidden, head), magnitude(teacher.hidden, teacher.head))
  depth = cases.DQ + cases.V + response.size + ELEMENTARY
  p, q = (jax.nn.softmax(a @ b) for a, b in ((hidden, head), (teacher.hidden, teacher.head)))
  written = jax.nn.one_hot(response, cases.V)
  parts = [p + (written if isinstance(each.term, PolicyGradient) else q) for each in terms]
  entries = sum(abs(each.coefficient)[..., None] * x for each, x in zip(terms, parts, strict=True))
  value = sum(
    abs(each.coefficient * x).sum()
    for each, x in zip(
      terms, dense_reference.values(hidden, head, response, targets, terms), strict=True
    )
  )
  unit = depth * EPS * (1 + size)
  d_head = jnp.einsum('brd,brv->dv', abs(hidden), entries)
  return unit * (value + entries.sum()), unit * entries @ abs(head).T, unit * d_head


def test_in_float32_every_order_of_a_sum_is_within_rounding_of_the_truth():
  hidden, head, response, targets = world(1.0, 'float32')
  chosen = (cases.CASES['forward full'], cases.CASES['policy gradient'])
  with jax.enable_x64(True):
    terms = [cases.weighted(term, seed) for seed, term in enumerate(chosen)]
  single = lambda tree: jax.tree.map(
    lambda x: np.asarray(x, np.float32) if x.dtype == np.float64 else np.asarray(x), tree
  )
  terms = tuple(single(terms))
  run = functools.partial(tiled, hidden, head, response, targets, terms)
  flat = lambda found: (found[0][0], *found[1])
  found = [flat(run(tile=1)), flat(run(tile=7)), flat(run(layout=mesh_layout(fsdp=4, tensor=2)))]
  found.append(in_parts(CUTS['combs'], hidden, head, response, targets, terms))
  with jax.enable_x64(True):
    double = lambda tree: jax.tree.map(
      lambda x: jnp.asarray(x, jnp.float64) if x.dtype == np.float32 else jnp.asarray(x), tree
    )
    exact = double((hidden, head, response, targets, terms))
    loss = jax.value_and_grad(dense_reference.loss, argnums=(0, 1))(*exact)
    want, bounds = jax.device_get(((loss[0], *loss[1]), rounding(*exact)))
  for each in found:
    for got, right, bound in zip(each, want, bounds, strict=True):
      assert (np.abs(np.asarray(got, np.float64) - right) <= bound).all()
  for right, bound in zip(want, bounds, strict=True):  # a bound that forgives everything is none
    assert np.max(bound) < 1e-2 * np.abs(right).max()


@functools.cache
def tiny_batch() -> Batch:
  """AOPD's two terms on a random batch of unequal rows, with a teacher known by its top 4."""
  rng = np.random.RandomState(0)
  rows, width, size = len(LENGTHS), max(LENGTHS), presets.tiny().vocab_size
  mask = np.arange(width) < np.array(LENGTHS)[:, None]
  prompts = left_padded(
    [rng.randint(0, size, 1 + number % 4).tolist() for number in range(rows)], width=4, pad=0
  )
  logp = -rng.rand(rows, width).astype(np.float32)
  rollout = Rollout(
    prompt=prompts,
    response=rng.randint(0, size, (rows, width)).astype(np.int32),
    mask=mask,
    writer=np.where(mask, STUDENT, NOBODY).astype(np.int32),
    behaviour_logp=logp,
    logp=logp,
    entropy=None,
    top_k=None,
    ended_by=np.ones(rows, np.int32),
    version=np.zeros(rows, np.int32),
    reward=np.zeros(rows, np.float32),
  )
  ids = np.argsort(rng.rand(rows, width, size), axis=-1)[..., :4].astype(np.int32)
  best = np.log(rng.dirichlet(np.ones(5), (rows, width))[..., :4]).astype(np.float32)
  mean, guided = np.asarray(per_sequence(mask)), rng.rand(rows, width) < 0.5
  guide = cases.on(ForwardKL(), TeacherTopK(4), Renormalised())
  advantage = rng.randn(rows, width).astype(np.float32)
  terms = guide(mean * guided), PolicyGradient()(mean * ~guided * advantage)
  return Batch(rollout, mask, {'teacher': Target(top_k=TopK(ids=ids, logp=best))}, terms)


@functools.cache
def tiny_params():
  return transformer.init(presets.tiny(), mesh_layout(), jax.random.key(0))


def through_the_model(params, layout, **settings):
  """Loss and gradient of the tiny batch, in numpy."""
  found, _ = gradient.gradient(
    params, tiny_batch(), config=presets.tiny(), layout=layout, **settings
  )
  return float(found.loss), [np.asarray(x, np.float64) for x in jax.tree.leaves(found.gradient)]


def longest_way() -> int:
  """Summands on the way of a number through the model and back, and the tokens that its gradient is summed over."""
  config = presets.tiny()
  context = max(LENGTHS) + 4
  heads = config.num_heads * config.head_dim
  layer = 2 * config.width + heads + config.head_dim + context + config.mlp_width + ELEMENTARY
  there = config.num_layers * layer + config.width + config.vocab_size + ELEMENTARY
  return 2 * there + sum(LENGTHS)


def test_through_a_real_model_no_partition_and_no_mesh_shows(single):
  """|error| ≤ depth · eps · Σ over rows of |gradient of the row|, to first order; also the sum of single rows."""
  params, config = tiny_params(), presets.tiny()
  rows = [through_the_model(params, single, rows=np.array([row])) for row in range(len(LENGTHS))]
  norm = lambda leaves: np.sqrt(sum(np.square(leaf).sum() for leaf in leaves))
  want = (
    sum(loss for loss, _ in rows),
    [sum(each) for each in zip(*(g for _, g in rows), strict=True)],
  )
  bound = 2 * longest_way() * EPS  # either side may be so far from the truth
  sizes = bound * sum(abs(loss) for loss, _ in rows), bound * sum(norm(g) for _, g in rows)
  assert sizes[1] < 1e-2 * norm(want[1])
  found = [through_the_model(params, single, microbatches=count) for count in (1, 2, 4)]
  layout = mesh_layout(fsdp=4, tensor=2)
  lies = jax.tree.map(lambda leaf: leaf.sharding, transformer.abstract(config, layout))
  found.append(through_the_model(jax.device_put(params, lies), layout))
  for loss, leaves in found:
    assert abs(loss - want[0]) <= sizes[0]
    assert norm([one - other for one, other in zip(leaves, want[1], strict=True)]) <= sizes[1]


def test_a_judge_answers_for_the_position_it_was_asked_about(single):
  """A token that the teacher embeds otherwise is felt from the next position on, and not at its own."""
  config = presets.tiny(width=32, tied=False)
  params = transformer.init(config, single, jax.random.key(7))
  rollout, row, at = tiny_batch().rollout, 4, 2
  prompt, response, token = rollout.prompt, rollout.response, int(rollout.response[4, 2])
  moved = {**params, 'embed': {'table': params['embed']['table'].at[token].add(1.0)}}
  request = ScoreRequest(entropy=True, top_k=3, hidden=True)
  ask = lambda params: scorer.score(
    params, prompt.tokens, prompt.length, response, config=config, layout=single, request=request
  )
  width = prompt.tokens.shape[1]
  seen = np.cumsum(np.concatenate([prompt.tokens == token, response == token], axis=1), axis=1)
  before = seen[:, width - 1 : -1] > 0  # whether the token stands before each position
  assert before[row, at + 1] and not before[row, at]
  for field in ('logp', 'entropy', 'top_k', 'hidden'):
    pair = (getattr(ask(each), field) for each in (params, moved))
    one, other = (np.asarray(getattr(x, 'logp', x)) for x in pair)
    felt = np.abs(one - other).reshape(*response.shape, -1).max(axis=-1) > 1e-7
    np.testing.assert_array_equal(felt & rollout.mask, before & rollout.mask)
