"""The tiled pass equals whole arrays of logits: in value and gradient, for any tile and mesh."""

import functools

import dense_reference
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from vocabulary_cases import CASES, NAMES, B, K, R, V, close, every_case, only, tiled, weighted
from vocabulary_cases import on as on_support
from vocabulary_cases import world as world_of

from opd_jax.losses import vocabulary
from opd_jax.losses.divergences import ReverseKL
from opd_jax.losses.rest_rules import RestRule, Tail
from opd_jax.losses.supports import StudentTopK, TeacherTopK
from opd_jax.losses.terms import AtIds, DivergenceTerm, OnToken, Term
from opd_jax.losses.vocab_group import VocabGroup
from opd_jax.sharding import mesh_layout
from opd_jax.types import TopK


@pytest.fixture(autouse=True)
def float64():
  """Laws are checked to twelve digits; what is said about smaller types makes its own arrays."""
  with jax.enable_x64(True):
    yield


@functools.cache
def dense_cases():
  """Loss and gradient of every case, by whole logits."""
  gradient = jax.jit(jax.value_and_grad(dense_reference.loss, argnums=(0, 1)))
  terms = every_case()
  return [gradient(*world_of(), only(terms, number)) for number in range(len(NAMES))]


def dense_of(name):
  return dense_cases()[NAMES.index(name)]


def kinds(base) -> set[str]:
  """The names of every class of the package below a base that can be made."""
  ours = [child for child in base.__subclasses__() if child.__module__.startswith('opd_jax')]
  below = {kind for child in ours for kind in kinds(child) | {child.__name__}}
  return below - {OnToken.__name__, AtIds.__name__}


def test_every_kind_of_term_and_rest_rule_has_a_case():
  name = lambda record: type(record).__name__
  assert {name(term) for term in CASES.values()} == kinds(Term)
  supports = [term.support for term in CASES.values() if isinstance(term, DivergenceTerm)]
  assert {name(support.rest) for support in supports if support.rest} == kinds(RestRule)


def test_tiles_that_do_not_divide_the_tokens_equal_whole_logits():
  terms = every_case()
  for number, name in enumerate(NAMES):
    (value, _), gradients = tiled(*world_of(), only(terms, number), tile=7)
    close((value, gradients), dense_of(name))


@pytest.mark.parametrize('name', ['policy gradient', 'reverse full', 'teacher tail', 'hidden'])
def test_a_term_alone_is_what_it_is_in_a_sum(name):
  """Programs without dense parts, or without sparse ones, take other paths."""
  one = every_case()[NAMES.index(name)]
  (value, _), gradients = tiled(*world_of(), (one,))
  close((value, gradients), dense_of(name))


def test_several_terms_of_several_judges_in_one_pass_are_their_sum():
  (value, _), gradients = tiled(*world_of(), every_case(), tile=7)
  total = jax.tree.map(lambda *parts: sum(parts), *dense_cases())
  close((value, gradients), total)


def test_a_mesh_equals_one_device():
  """Rows and heads are cut by `fsdp`, the vocabulary by `tensor`, and pairs of `fsdp` share columns."""
  shape = {'fsdp': 4, 'tensor': 2}
  terms = every_case()
  run = functools.partial(tiled, *world_of(), diagnose='teacher')
  (_, want), _ = run(terms)
  run = functools.partial(run, share=2)
  (_, reading), _ = run(terms, layout=mesh_layout(**shape))
  close(reading, want)
  for number, name in enumerate(NAMES):
    (value, _), gradients = run(only(terms, number), layout=mesh_layout(**shape))
    close((value, gradients), dense_of(name))


@pytest.mark.parametrize(
  'shape, share',
  [({'data': 2, 'fsdp': 4}, 1), ({'data': 2, 'fsdp': 4}, 4), ({'tensor': 8}, None)],
  ids=str,
)
def test_devices_may_share_the_vocabulary_of_any_number(shape, share):
  names = 'policy gradient', 'student tail', 'hidden'
  terms = tuple(every_case()[NAMES.index(name)] for name in names)
  total = jax.tree.map(lambda *parts: sum(parts), *map(dense_of, names))
  (value, _), gradients = tiled(
    *world_of(), terms, layout=mesh_layout(**shape), share=share, tile=5
  )
  close((value, gradients), total)


def test_a_number_that_cannot_share_is_refused():
  with pytest.raises(ValueError, match='40 columns cannot be shared by 3 of the devices'):
    tiled(*world_of(), every_case(('k2',)), layout=mesh_layout(fsdp=4), share=3)


def test_a_wide_head_is_whole_on_no_device():
  """Groups grow until a device's columns are small; below that, what is sent decides."""
  layout = mesh_layout(fsdp=8)
  of = functools.partial(VocabGroup.of, layout)
  big = of(width=4096, vocabulary=151_936, tokens=2**20)
  assert (big.share, big.columns.size) == (8, 151_936 // 8)
  assert of(width=64, vocabulary=320, tokens=2**20).share == 1
  assert of(width=64, vocabulary=320, tokens=4).share == 8


@pytest.mark.parametrize('shape', [{}, {'fsdp': 2, 'tensor': 4}], ids=str)
def test_measured_values_are_those_of_whole_logits(shape):
  hidden, head, response, targets = world_of()
  names = [name for name in NAMES if not CASES[name].inputs_wanted]
  zero = jnp.zeros((B, R))
  terms = tuple(CASES[name](zero) for name in names)
  mask = jnp.arange(B * R).reshape(B, R) % 5 > 0
  dirty = jnp.where(mask[..., None], hidden, jnp.nan)
  measured = jax.jit(
    functools.partial(
      vocabulary.measured,
      terms={name: CASES[name] for name in names},
      layout=mesh_layout(**shape),
      mask=mask,
      tile=5,
    )
  )
  got = measured(dirty, head, response, targets)
  assert got.keys() == set(names)
  want = jax.jit(dense_reference.values)(hidden, head, response, targets, terms)
  for name, value in zip(names, want, strict=True):
    close(got[name], jnp.where(mask, value, 0.0))


@pytest.mark.parametrize('sparse', [False, True], ids=['known whole', 'known by its top'])
def test_a_top_k_wider_than_a_device_equals_one_device(sparse):
  """Local bests of 5 columns are merged: also where they are all a device has."""
  hidden, head, response, targets = world_of()
  teacher = targets['teacher']
  best, ids = jax.lax.top_k(jax.nn.log_softmax(teacher.hidden @ teacher.head), V)
  given = teacher._replace(top_k=TopK(ids=ids, logp=best)) if sparse else teacher
  wide = [on_support(ReverseKL(), TeacherTopK(k) | StudentTopK(k), Tail()) for k in (7, 13, V)]
  terms = tuple(weighted(term, seed) for seed, term in enumerate(wide))
  run = lambda number, **shape: tiled(
    hidden,
    head,
    response,
    {'teacher': given},
    only(terms, number),
    layout=mesh_layout(**shape),
    diagnose='teacher',
  )
  for number in range(len(wide)):
    close(run(number, tensor=8), run(number))


def test_a_reading_covers_the_mask_not_only_what_has_a_coefficient(single):
  hidden, head, response, targets = world_of()
  one = weighted(CASES['reverse full'])
  counted = lambda mask: vocabulary.weighted_sum(
    hidden, head, response, targets, (one,), layout=single, mask=mask, diagnose='teacher'
  )
  (loss, reading), (want, _) = counted(jnp.ones((B, R), bool)), counted(None)
  log_p = jax.nn.log_softmax(hidden @ head)
  close((loss, reading.entropy), (want, -(jnp.exp(log_p) * log_p).sum(-1)))
  close(reading.values[0], reading.teacher['reverse_kl'])


def test_what_does_not_count_is_inert():
  """NaN states, NaN inputs: a coefficient of zero is all that matters. An empty batch gives zero."""
  hidden, head, response, targets = world_of()
  for number in range(len(NAMES)):
    terms = only(every_case(), number)
    off = terms[number].coefficient == 0
    dirty = lambda x, off=off: (
      jnp.where(off.reshape(off.shape + (1,) * (x.ndim - 2)), jnp.nan, x)
      if jnp.issubdtype(x.dtype, jnp.floating)
      else x
    )
    soiled = tuple(each._replace(inputs=jax.tree.map(dirty, each.inputs)) for each in terms)
    unclear = {
      name: target._replace(hidden=dirty(target.hidden)) for name, target in targets.items()
    }
    (value, _), gradients = tiled(dirty(hidden), head, response, unclear, soiled)
    close((value, gradients), dense_cases()[number])
    empty = tuple(each._replace(coefficient=0 * each.coefficient) for each in soiled)
    (value, _), gradients = tiled(dirty(hidden), head, response, unclear, empty)
    assert value == 0 and all(not leaf.any() for leaf in jax.tree.leaves(gradients))


def test_a_term_that_does_not_count_is_inert_beside_one_that_does():
  """Its inputs may be anything at a position where another term has a coefficient."""
  terms = every_case()
  first = NAMES.index('policy gradient')
  unclear = lambda x: jnp.full_like(x, jnp.nan) if jnp.issubdtype(x.dtype, jnp.floating) else x
  soiled = tuple(
    each if number == first else each._replace(inputs=jax.tree.map(unclear, each.inputs))
    for number, each in enumerate(only(terms, first))
  )
  (value, _), gradients = tiled(*world_of(), soiled)
  close((value, gradients), dense_cases()[first])


def test_extreme_logits_give_finite_numbers():
  """But for k3: u - 1 - log u is as large as u, which no type holds here."""
  names = tuple(name for name in NAMES if name != 'k3')
  terms = every_case(names)
  for number, name in enumerate(names):
    (value, _), gradients = tiled(*world_of(60.0, 'float32'), only(terms, number))
    finite = [np.isfinite(leaf).all() for leaf in jax.tree.leaves((value, gradients))]
    assert all(finite), name


def test_the_judges_get_no_gradient(single):
  hidden, head, response, targets = world_of()

  def loss(targets):
    return vocabulary.weighted_sum(hidden, head, response, targets, every_case(), layout=single)[0]

  assert all(not leaf.any() for leaf in jax.tree.leaves(jax.jit(jax.grad(loss))(targets)))


def test_a_scale_on_the_loss_scales_the_gradient(single):
  """Gradient accumulation multiplies losses; the one-sweep backward must pass that on."""
  hidden, head, response, targets = world_of()
  terms = (weighted(CASES['reverse full']),)
  loss = lambda head: vocabulary.weighted_sum(
    hidden, head, response, targets, terms, layout=single
  )[0]
  gradient = jax.jit(jax.grad(lambda head, scale: scale * loss(head)))
  close(gradient(head, 3.0), 3.0 * gradient(head, 1.0))


def test_the_reading_is_what_the_models_say():
  hidden, head, response, targets = world_of()
  teacher = targets['teacher']
  log_p, log_q = (
    jax.nn.log_softmax(hidden @ head),
    jax.nn.log_softmax(teacher.hidden @ teacher.head),
  )
  best, ids = jax.lax.top_k(log_q, K)
  targets = {'teacher': teacher._replace(top_k=TopK(ids=ids, logp=best))}
  one = CASES['policy gradient'](jnp.ones((B, R)))
  (_, reading), _ = tiled(hidden, head, response, targets, (one,), diagnose='teacher')
  mine = jax.lax.top_k(log_p, K)[1]
  want = {
    'entropy': -(jnp.exp(log_q) * log_q).sum(-1),
    'agreement': log_p.argmax(-1) == log_q.argmax(-1),
    'forward_kl': (jnp.exp(log_q) * (log_q - log_p)).sum(-1),
    'reverse_kl': (jnp.exp(log_p) * (log_p - log_q)).sum(-1),
    'mass': jnp.exp(best).sum(-1),
    'student_mass': jnp.exp(jnp.take_along_axis(log_p, ids, -1)).sum(-1),
    'overlap': (ids[..., :, None] == mine[..., None, :]).any(-1).astype(float).mean(-1),
  }
  assert reading.teacher.keys() == want.keys()
  close(dict(reading.teacher), want)
  close(reading.entropy, -(jnp.exp(log_p) * log_p).sum(-1))
  close(reading.logp, jnp.take_along_axis(log_p, response[..., None], -1)[..., 0])
