"""The tiled pass equals whole arrays of logits: in value, in gradient, for any tile, teacher and mesh."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from opd_jax.losses import divergences, supports, terms, vocabulary
from opd_jax.losses.vocab_shard import Target
from opd_jax.losses.vocabulary import WeightedTerm
from opd_jax.sharding import mesh_layout
from opd_jax.types import TopK

B, R, D, DQ, V, K = 4, 6, 8, 12, 40, 5
TOP = supports.teacher_top_k
CASES = {
  'policy gradient': terms.policy_gradient(),
  'clipped ratio': terms.clipped_ratio(low=0.1, high=0.3, dual=3.0),
  'importance ratio': terms.importance_ratio(),
  'k2': terms.k2(),
  'k3': terms.k3(),
  'hidden': terms.hidden_distance(),
  'forward full': terms.divergence(divergences.forward_kl(), supports.full()),
  'reverse full': terms.divergence(divergences.reverse_kl(), supports.full()),
  'jsd full': terms.divergence(divergences.jensen_shannon(beta=0.3), supports.full()),
  'clamped entries': terms.divergence(
    divergences.clamped_per_entry(divergences.forward_kl(), most=0.05), supports.full()
  ),
  'clamped tokens': terms.divergence(divergences.forward_kl(), supports.full(), most_per_token=0.5),
  'teacher tail': terms.divergence(divergences.reverse_kl(), TOP(K, close=supports.tail())),
  'forward tail': terms.divergence(divergences.forward_kl(), TOP(K, close=supports.tail())),
  'teacher renorm': terms.divergence(divergences.forward_kl(), TOP(K, close=supports.renorm())),
  'teacher only': terms.divergence(divergences.forward_kl(), TOP(K, close=supports.teacher_only())),
  'teacher raw': terms.divergence(divergences.reverse_kl(), TOP(K, close=supports.raw())),
  'teacher stopped': terms.divergence(divergences.reverse_kl(), TOP(K, close=supports.stopped())),
  'student tail': terms.divergence(
    divergences.jensen_shannon(beta=0.5), supports.student_top_k(K, close=supports.tail())
  ),
  'union': terms.divergence(
    divergences.forward_kl(), supports.union_top_k(K, close=supports.tail())
  ),
  'intersection': terms.divergence(
    divergences.reverse_kl(), supports.intersection_top_k(K, close=supports.renorm())
  ),
  'columns': terms.divergence(
    divergences.forward_kl(), supports.columns((3, 17, 39), close=supports.tail())
  ),
}
ALL = pytest.mark.parametrize('name', CASES)


@pytest.fixture(autouse=True)
def float64():
  """Laws are checked to twelve digits; what is said about smaller types makes its own arrays."""
  with jax.enable_x64(True):
    yield


@functools.lru_cache
def world(seed=0, scale=2.0, dtype='float64'):
  rng = np.random.RandomState(seed)
  draw = lambda *shape: jnp.asarray(
    scale * rng.randn(*shape) / np.sqrt(shape[-1] if len(shape) == 3 else 1), dtype
  )
  hidden, teacher = draw(B, R, D), draw(B, R, DQ)
  head, teacher_head = draw(D, V), draw(DQ, V)
  response = jnp.asarray(rng.randint(0, V, (B, R)), jnp.int32)
  return hidden, head, response, Target(hidden=teacher, head=teacher_head)


def share(term, seed=0):
  rng = np.random.RandomState(seed + 100)
  number = lambda *shape: jnp.asarray(rng.randn(*shape))
  coefficient = jnp.where(
    number(B, R) > -0.8, number(B, R), 0.0
  )  # about a fifth of the positions do not count
  behaviour = -jnp.abs(number(B, R)) - 1.0
  known = {
    'advantage': number(B, R),
    'behaviour_logp': behaviour,
    'teacher_logp': behaviour,
    'hidden': number(B, R, D),
  }
  return WeightedTerm(term, coefficient, {name: known[name] for name in term.reads})


def tiled(hidden, head, response, target, weighted_terms, *, layout, tile=None, diagnose=False):
  def loss(hidden, head):
    return vocabulary.weighted_sum(
      hidden, head, response, target, weighted_terms, layout=layout, tile=tile, diagnose=diagnose
    )

  return jax.jit(jax.value_and_grad(loss, argnums=(0, 1), has_aux=True))(hidden, head)


def close(got, want, tolerance=1e-12):
  for one, other in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
    scale = max(float(jnp.abs(other).max()), 1e-3)
    np.testing.assert_allclose(np.asarray(one) / scale, np.asarray(other) / scale, atol=tolerance)


@ALL
@pytest.mark.parametrize('tile', [1, 7, 24])
def test_any_tile_equals_whole_logits(name, tile, single):
  hidden, head, response, target = world()
  weighted_terms = (share(CASES[name]),)
  (value, reading), gradients = tiled(
    hidden, head, response, target, weighted_terms, layout=single, tile=tile
  )
  want = jax.value_and_grad(vocabulary.dense, argnums=(0, 1))(
    hidden, head, response, target, weighted_terms
  )
  close((value, gradients), want)
  counts = weighted_terms[0].coefficient != 0
  close(jnp.where(counts, reading.values[0] * weighted_terms[0].coefficient, 0).sum(), value)


def test_several_terms_share_one_sweep(single):
  hidden, head, response, target = world()
  weighted_terms = tuple(share(term, seed) for seed, term in enumerate(CASES.values()))
  (value, reading), gradients = tiled(hidden, head, response, target, weighted_terms, layout=single)
  want = jax.value_and_grad(vocabulary.dense, argnums=(0, 1))(
    hidden, head, response, target, weighted_terms
  )
  close((value, gradients), want)
  assert len(reading.values) == len(CASES)


@ALL
@pytest.mark.parametrize('shape', [{'data': 8}, {'tensor': 8}, {'fsdp': 2, 'tensor': 4}], ids=str)
def test_any_mesh_equals_one_device(name, shape, single):
  hidden, head, response, target = world()
  twice = lambda x: jnp.concatenate([x, x])  # eight rows for eight devices
  rows = jax.tree.map(twice, (hidden, response, share(CASES[name])))
  target = target._replace(hidden=twice(target.hidden))
  run = lambda layout: tiled(
    rows[0], head, rows[1], target, (rows[2],), layout=layout, diagnose=True
  )
  close(run(mesh_layout(**shape)), run(single))


@pytest.mark.parametrize('k', [7, 13, 40], ids=lambda k: f'top {k} of 5 columns each')
def test_a_top_k_wider_than_a_device_equals_one_device(k, single):
  """Local bests are merged: also where they are all a device has, and where the teacher came as a top k."""
  hidden, head, response, target = world()
  log_q = jax.nn.log_softmax(target.hidden @ target.head)
  best, ids = jax.lax.top_k(log_q, k)
  weighted_terms = (
    share(
      terms.divergence(divergences.reverse_kl(), supports.union_top_k(k, close=supports.tail()))
    ),
  )
  for given in (target, target._replace(top_k=TopK(ids=ids, logp=best))):
    run = lambda layout, given=given: tiled(
      hidden, head, response, given, weighted_terms, layout=layout, diagnose=True
    )
    close(run(mesh_layout(tensor=8)), run(single))


def test_ids_outside_the_vocabulary_are_no_entries(single):
  """A judge that had fewer to tell pads with -1 or with V; those must not look like certainties."""
  hidden, head, response, target = world()
  best, ids = jax.lax.top_k(jax.nn.log_softmax(target.hidden @ target.head), K)
  padded = lambda strange: Target(
    top_k=TopK(
      ids=jnp.concatenate([ids, jnp.full_like(ids[..., :2], strange)], axis=-1),
      logp=jnp.concatenate([best, jnp.zeros_like(best[..., :2])], axis=-1),
    )
  )
  for close_by in (supports.tail(), supports.renorm()):
    run = lambda target, k, close_by=close_by: tiled(
      hidden, head, response, target, (share(terms.divergence(divergences.forward_kl(), TOP(k, close=close_by))),),
      layout=single,
    )  # fmt: skip
    (want, _), gradients = run(Target(top_k=TopK(ids=ids, logp=best)), K)
    for strange in (-1, V):
      (got, _), slopes = run(padded(strange), K + 2)
      close((got, slopes), (want, gradients))


def test_a_reading_covers_the_mask_not_only_what_has_a_coefficient(single):
  hidden, head, response, target = world()
  one = share(CASES['reverse full'])
  counted = lambda mask: vocabulary.weighted_sum(
    hidden, head, response, target, (one,), layout=single, mask=mask, diagnose=True
  )
  (loss, reading), (want, _) = counted(jnp.ones((B, R), bool)), counted(None)
  log_p = jax.nn.log_softmax(hidden @ head)
  close((loss, reading.entropy), (want, -(jnp.exp(log_p) * log_p).sum(-1)))
  close(reading.values[0], reading.teacher['reverse_kl'])


@pytest.mark.parametrize('certain', [8.0, 16.0, 24.0])
def test_a_rest_of_any_size_keeps_its_gradient_in_float32(certain, single):
  """Forward KL with a tail where the student is all but certain: the rest must not drown in the kept mass."""
  states = jnp.zeros((1, 2, V)).at[..., 3].set(certain)
  teacher = jnp.zeros((1, 2, V)).at[..., :K].set(2.0)

  def slope(kind):
    weighted = WeightedTerm(CASES['forward tail'], jnp.ones((1, 2), kind), {})
    target = Target(hidden=teacher.astype(kind), head=jnp.eye(V, dtype=kind))
    response = jnp.zeros((1, 2), jnp.int32)
    gradients = tiled(
      states.astype(kind), jnp.eye(V, dtype=kind), response, target, (weighted,), layout=single
    )[1]
    return np.asarray(gradients[0], np.float64)

  assert np.linalg.norm(slope('float32') - slope('float64')) <= 1e-5 * np.linalg.norm(
    slope('float64')
  )


@pytest.mark.parametrize(
  'name', ['teacher tail', 'teacher renorm', 'teacher only', 'teacher raw', 'teacher stopped']
)
def test_a_teacher_known_by_its_top_k_equals_a_whole_one(name, single):
  hidden, head, response, target = world()
  log_q = jax.nn.log_softmax(target.hidden @ target.head)
  best, ids = jax.lax.top_k(log_q, K + 2)  # more than is asked for
  weighted_terms = (share(CASES[name]),)
  (want, _), gradients = tiled(hidden, head, response, target, weighted_terms, layout=single)
  got = tiled(
    hidden, head, response, Target(top_k=TopK(ids=ids, logp=best)), weighted_terms, layout=single
  )
  close((got[0][0], got[1]), (want, gradients))


@pytest.mark.parametrize('name', ['student tail', 'union', 'intersection'])
def test_a_teacher_asked_about_the_students_ids_equals_a_whole_one(name, single):
  hidden, head, response, target = world()
  log_q = jax.nn.log_softmax(target.hidden @ target.head)
  mine = jax.lax.top_k(hidden @ head, K)[1]
  best, ids = jax.lax.top_k(log_q, K)
  sparse = Target(
    top_k=TopK(ids=ids, logp=best),
    at_ids=TopK(ids=mine, logp=jnp.take_along_axis(log_q, mine, axis=-1)),
  )
  weighted_terms = (share(CASES[name]),)
  (want, _), gradients = tiled(hidden, head, response, target, weighted_terms, layout=single)
  got = tiled(hidden, head, response, sparse, weighted_terms, layout=single)
  close((got[0][0], got[1]), (want, gradients))


@pytest.mark.parametrize('name', ['reverse full', 'columns', 'student tail', 'teacher tail'])
def test_what_the_teacher_did_not_say_is_refused(name, single):
  hidden, head, response, _ = world()
  with pytest.raises(ValueError, match='whole distribution of the teacher'):
    tiled(hidden, head, response, Target(), (share(CASES[name]),), layout=single)


def test_other_refusals_name_what_came(single):
  hidden, head, response, target = world()
  run = functools.partial(tiled, layout=single)
  one = share(terms.policy_gradient())
  with pytest.raises(ValueError, match='no weighted_terms'):
    run(hidden, head, response, target, ())
  with pytest.raises(ValueError, match='belong together'):
    run(hidden, head, response, target._replace(head=None), (one,))
  with pytest.raises(ValueError, match='40 entries, the teacher 39'):
    run(hidden, head, response, target._replace(head=target.head[:, 1:]), (one,))
  with pytest.raises(ValueError, match='coefficient of'):
    run(hidden, head, response, target, (one._replace(coefficient=one.coefficient[:, 1:]),))
  with pytest.raises(ValueError, match="the input 'teacher_logp' of K2"):
    run(
      hidden,
      head,
      response,
      target,
      (WeightedTerm(terms.k2(), one.coefficient, {'teacher_logp': jnp.zeros((B, R - 1))}),),
    )
  with pytest.raises(ValueError, match="the teacher's hidden states are of shape"):
    run(hidden, head, response, target._replace(hidden=target.hidden[:, 1:]), (one,))
  with pytest.raises(ValueError, match='a top 41 is wanted of 40'):
    many = terms.divergence(divergences.forward_kl(), TOP(V + 1, close=supports.tail()))
    run(hidden, head, response, target, (share(many),), layout=mesh_layout(tensor=8))
  with pytest.raises(ValueError, match='infinite where the teacher has no mass'):
    terms.divergence(divergences.reverse_kl(), TOP(K, close=supports.teacher_only()))
  with pytest.raises(ValueError, match='reads'):
    run(hidden, head, response, target, (one._replace(term=terms.k2()),))
  with pytest.raises(ValueError, match='cannot be shared evenly'):
    run(
      hidden[:3],
      head,
      response[:3],
      Target(),
      (jax.tree.map(lambda x: x[:3], one),),
      layout=mesh_layout(data=8),
    )
  few = Target(top_k=TopK(ids=jnp.zeros((B, R, 2), jnp.int32), logp=jnp.zeros((B, R, 2))))
  with pytest.raises(ValueError, match='2 entries were scored'):
    run(hidden, head, response, few, (share(CASES['teacher tail']),))


@ALL
def test_what_does_not_count_is_inert(name, single):
  """NaN states, infinite inputs: a coefficient of zero is all that matters. An empty batch gives zero."""
  hidden, head, response, target = world()
  one = share(CASES[name])
  off = one.coefficient == 0
  dirty = lambda x: jnp.where(off.reshape(off.shape + (1,) * (x.ndim - 2)), jnp.nan, x)
  weighted_terms = (one._replace(inputs=jax.tree.map(dirty, one.inputs)),)
  (want, _), gradients = tiled(hidden, head, response, target, (one,), layout=single)
  got = tiled(
    dirty(hidden),
    head,
    response,
    target._replace(hidden=dirty(target.hidden)),
    weighted_terms,
    layout=single,
  )
  close((got[0][0], got[1]), (want, gradients))
  empty = (one._replace(coefficient=jnp.zeros((B, R))),)
  (value, _), gradients = tiled(dirty(hidden), head, response, target, empty, layout=single)
  assert value == 0 and all(not leaf.any() for leaf in jax.tree.leaves(gradients))


@ALL
def test_extreme_logits_give_finite_numbers(name, single):
  if name == 'k3':
    pytest.skip('u - 1 - log u is as large as u, which no type holds here')
  hidden, head, response, target = world(scale=60.0, dtype='float32')
  (value, _), gradients = tiled(
    hidden, head, response, target, (share(CASES[name]),), layout=single
  )
  assert np.isfinite(value) and all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(gradients))


def test_the_teacher_gets_no_gradient(single):
  hidden, head, response, target = world()
  weighted_terms = tuple(share(term) for term in CASES.values())

  def loss(target):
    return vocabulary.weighted_sum(hidden, head, response, target, weighted_terms, layout=single)[0]

  assert all(not leaf.any() for leaf in jax.tree.leaves(jax.grad(loss)(target)))


def test_a_scale_on_the_loss_scales_the_gradient(single):
  """Gradient accumulation multiplies losses; the one-sweep backward must pass that on."""
  hidden, head, response, target = world()
  weighted_terms = (share(CASES['reverse full']),)
  loss = lambda scale: jax.grad(
    lambda head: (
      scale
      * vocabulary.weighted_sum(hidden, head, response, target, weighted_terms, layout=single)[0]
    )
  )(head)
  close(loss(3.0), 3.0 * loss(1.0))


def test_the_reading_is_what_the_models_say(single):
  hidden, head, response, target = world()
  log_p, log_q = jax.nn.log_softmax(hidden @ head), jax.nn.log_softmax(target.hidden @ target.head)
  best, ids = jax.lax.top_k(log_q, K)
  target = target._replace(top_k=TopK(ids=ids, logp=best))
  one = share(terms.policy_gradient())._replace(coefficient=jnp.ones((B, R)))
  (_, reading), _ = tiled(hidden, head, response, target, (one,), layout=single, diagnose=True)
  mine = jax.lax.top_k(log_p, K)[1]
  want = {
    'entropy': -(jnp.exp(log_q) * log_q).sum(-1),
    'agreement': log_p.argmax(-1) == log_q.argmax(-1),
    'forward_kl': (jnp.exp(log_q) * (log_q - log_p)).sum(-1),
    'reverse_kl': (jnp.exp(log_p) * (log_p - log_q)).sum(-1),
    'mass': jnp.exp(best).sum(-1),
    'student_mass': jnp.exp(jnp.take_along_axis(log_p, ids, -1)).sum(-1),
    'overlap': (ids[..., :, None] == mine[..., None, :]).any(-1).mean(-1),
  }
  assert reading.teacher.keys() == want.keys()
  close(dict(reading.teacher), want)
  close(reading.entropy, -(jnp.exp(log_p) * log_p).sum(-1))
  close(reading.logp, jnp.take_along_axis(log_p, response[..., None], -1)[..., 0])


DIVERGENCES = ('forward full', 'reverse full', 'jsd full', 'teacher tail', 'forward tail')


@pytest.mark.parametrize('name', DIVERGENCES)
@pytest.mark.parametrize(
  'distance', [1e-3, 0.3, 2.0, 60.0], ids=lambda each: f'perturbed by {each:g}'
)
def test_bfloat16_keeps_three_digits_of_value_and_two_of_gradient(name, distance, single):
  """Against float64 on the same bfloat16 inputs; logits up to ±60, divergences from 1e-6 to 30 nats and more."""
  rng = np.random.RandomState(7)
  width, size, rows = 64, 512, 32
  head = rng.randn(width, size)
  states = rng.randn(1, rows, width) * (12 / np.sqrt(width))  # logits up to about 60
  noise = rng.randn(1, rows, size) * (distance if distance < 10 else 0)
  states_q = rng.randn(1, rows, width) * (12 / np.sqrt(width)) if distance > 10 else states
  # The teacher's head has extra columns of states, so that a perturbation of any size survives bfloat16.
  extra = (
    np.concatenate([states_q, np.eye(rows)[None]], axis=-1),
    np.concatenate([head, noise[0]], axis=0),
  )
  low = lambda x: jnp.asarray(x, jnp.bfloat16)
  hidden, head, teacher, teacher_head = low(states), low(head), low(extra[0]), low(extra[1])
  weighted = WeightedTerm(CASES[name], jnp.ones((1, rows), jnp.float32) / rows, {})
  response, target = jnp.zeros((1, rows), jnp.int32), Target(hidden=teacher, head=teacher_head)
  (value, _), gradients = tiled(hidden, head, response, target, (weighted,), layout=single)
  high = lambda x: jnp.asarray(np.asarray(x, np.float64))
  target = Target(hidden=high(teacher), head=high(teacher_head))
  arguments = (
    high(hidden),
    high(head),
    response,
    target,
    (weighted._replace(coefficient=high(weighted.coefficient)),),
  )
  want, exact = jax.value_and_grad(vocabulary.dense, argnums=(0, 1))(*arguments)
  assert abs(float(value) / float(want) - 1) <= 1e-3, (float(value), float(want))
  for got, right in zip(gradients, exact, strict=True):
    error = np.linalg.norm(np.asarray(got, np.float64) - right) / np.linalg.norm(right)
    assert error <= 1e-2, error


def test_the_default_tile_comes_from_shapes_alone():
  assert vocabulary.tile_of(64, 151_936) == 64
  assert vocabulary.tile_of(4096, 151_936) >= 1024
