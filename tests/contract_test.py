"""The laws of a method, over every method found: through real models, the scorer and the vocabulary pass."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import worlds

from opd_jax.methods import discover
from opd_jax.models import transformer
from opd_jax.sharding import mesh_layout
from opd_jax.training import step
from opd_jax.training.step import gradient

METHODS = {entry.name: entry.make() for entry in discover()}
ALL = pytest.mark.parametrize('name', METHODS)


@functools.cache
def prepared():
  return worlds.models()


@functools.cache
def evidence(name):
  return worlds.evidence_of(METHODS[name], *prepared(), mesh_layout())


@functools.cache
def batch(name):
  return worlds.batch_of(METHODS[name], evidence(name), prepared()[1], mesh_layout())


def program(params, batch, *, config, layout, microbatches=1, tile=None):
  """Loss, gradient, and the contribution of every position."""
  total, readings = gradient(
    params, batch, config=config, layout=layout, microbatches=microbatches, tile=tile
  )
  shape = batch.rollout.response.shape
  told = np.zeros(shape)
  for rows, reading in readings:
    for weighted, value in zip(batch.weighted_terms, reading.values, strict=True):
      width = value.shape[1]
      told[rows, :width] += np.asarray(weighted.coefficient)[rows, :width] * np.asarray(value)
  return total.loss, total.slope, told


@functools.cache
def plain(name):
  config, params = prepared()[0]
  return program(params, batch(name), config=config, layout=mesh_layout())


def norm(tree):
  return np.sqrt(
    sum(np.square(np.asarray(leaf, np.float64)).sum() for leaf in jax.tree.leaves(tree))
  )


def close(got, want, tolerance=1e-6):
  """Loss and gradient to 1e-6 of their size: the rounding of float32 sums in another order."""
  assert abs(float(got[0]) - float(want[0])) <= tolerance * max(1, abs(float(want[0])))
  gap = jax.tree.map(lambda one, other: np.asarray(one) - np.asarray(other), got[1], want[1])
  assert norm(gap) <= tolerance * norm(want[1]), norm(gap) / norm(want[1])


@ALL
@pytest.mark.parametrize('microbatches', [2, 4, 8])
def test_any_partition_into_microbatches_gives_the_same_gradient(name, microbatches, single):
  config, params = prepared()[0]
  got = program(params, batch(name), config=config, layout=single, microbatches=microbatches)
  close(got, plain(name))


@ALL
def test_any_tile_gives_the_same_gradient(name, single):
  config, params = prepared()[0]
  close(program(params, batch(name), config=config, layout=single, tile=5), plain(name))


@ALL
@pytest.mark.parametrize('shape', [{'fsdp': 8}, {'fsdp': 4, 'tensor': 2}], ids=str)
def test_eight_devices_give_the_same_gradient(name, shape):
  config, params = prepared()[0]
  layout = mesh_layout(**shape)
  placed = jax.tree.map(lambda leaf: leaf.sharding, transformer.abstract(config, layout))
  got = program(
    jax.device_put(params, placed), jax.device_get(batch(name)), config=config, layout=layout
  )
  close(got, plain(name))


@ALL
def test_an_empty_batch_and_extreme_padding_are_inert(name, single):
  config, params = prepared()[0]
  whole = batch(name)
  mask = whole.rollout.mask
  junk = np.where(mask, whole.rollout.response, config.vocab_size - 1)
  dirty = lambda x: jnp.where(
    mask.reshape(mask.shape + (1,) * (x.ndim - 2)),
    x,
    jnp.inf if jnp.issubdtype(x.dtype, jnp.floating) else x,
  )
  soiled = jax.tree.map(
    lambda x: dirty(x) if jnp.ndim(x) >= 2 else x, evidence(name)._replace(rollout=None)
  )
  soiled = soiled._replace(rollout=whole.rollout._replace(response=junk), key=evidence(name).key)
  got = program(
    params,
    worlds.batch_of(METHODS[name], soiled, prepared()[1], single),
    config=config,
    layout=single,
  )
  close(got, plain(name))
  silent = tuple(
    weighted._replace(coefficient=0 * weighted.coefficient) for weighted in whole.weighted_terms
  )
  loss, slope, _ = program(
    params, whole._replace(weighted_terms=silent), config=config, layout=single
  )
  assert loss == 0 and all(not leaf.any() for leaf in jax.tree.leaves(slope))


@ALL
def test_rows_are_a_set(name, single):
  """Another order of the same rows is the same batch."""
  config, params = prepared()[0]
  order = np.array([5, 3, 0, 7, 1, 6, 2, 4])
  whole = batch(name)
  head = whole.target.head
  turned = jax.tree.map(lambda x: x[order], whole._replace(target=whole.target._replace(head=None)))
  turned = turned._replace(target=turned.target._replace(head=head))
  close(program(params, turned, config=config, layout=single), plain(name))


@ALL
def test_a_teacher_read_from_disk_equals_a_live_one(name, single, tmp_path):
  config, params = prepared()[0]
  whole = batch(name)
  leaves, tree = jax.tree.flatten(whole.target)
  np.savez(tmp_path / 'teacher.npz', *leaves)
  with np.load(tmp_path / 'teacher.npz') as stored:
    cached = jax.tree.unflatten(tree, [stored[key] for key in stored])
  got = program(params, whole._replace(target=cached), config=config, layout=single)
  assert float(got[0]) == float(plain(name)[0])


@ALL
def test_each_program_is_compiled_once(name, single):
  """Also for a method made anew from the same settings: terms are part of a program's identity."""
  config, params = prepared()[0]
  plain(name)
  before = step.compiles()
  fresh = next(entry.make() for entry in discover() if entry.name == name)
  again = worlds.evidence_of(fresh, *prepared(), single)
  program(
    params, worlds.batch_of(fresh, again, prepared()[1], single), config=config, layout=single
  )
  assert step.compiles() == before


@pytest.mark.parametrize('name', [name for name in METHODS if name not in ('seqkd', 'sft')])
def test_the_teacher_answers_for_the_position_it_was_asked_about(name, single):
  """Alignment: a token that the teacher embeds otherwise is felt from the next position on, and not at its own."""
  student, (config, params), reference = prepared()
  told = evidence(name)
  response, mask, prompts = told.rollout.response, told.rollout.mask, told.rollout.prompt
  row, at = 4, 2
  token = int(response[row, at])
  moved = {**params, 'embed': {'table': params['embed']['table'].at[token].add(1.0)}}
  after = worlds.evidence_of(METHODS[name], student, (config, moved), reference, single)
  felt = lambda one, other: (
    np.abs(np.asarray(one) - np.asarray(other)).reshape(*mask.shape, -1).max(axis=-1) > 1e-7
  )
  seen = np.cumsum(np.concatenate([prompts.tokens == token, response == token], axis=1), axis=1)
  before = (
    seen[:, prompts.tokens.shape[1] - 1 : -1] > 0
  )  # whether the token stands before each position
  assert before[row, at + 1] and not before[row, at]
  fields = zip(told.teacher, after.teacher, strict=True)
  for moved_at in [felt(*map(_numbers, pair)) for pair in fields if pair[0] is not None]:
    np.testing.assert_array_equal(moved_at & mask, before & mask)
  if name != 'iw_opd':  # whose weights look back over the whole row
    batches = [worlds.batch_of(METHODS[name], each, (config, judge), single)
               for each, judge in ((told, params), (after, moved))]  # fmt: skip
    moved_at = felt(
      *(program(student[1], each, config=student[0], layout=single)[2] for each in batches)
    )
    np.testing.assert_array_equal(moved_at & mask, before & mask)


def _numbers(field):
  """What a judge told, as numbers: of a top k its log-probabilities."""
  return getattr(field, 'logp', field)
