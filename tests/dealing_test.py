"""Rows that are dealt to passes stay on their devices, and come back in their order."""

import jax
import numpy as np
import pytest

from opd_jax import dealing
from opd_jax.sharding import mesh_layout


@pytest.mark.parametrize(
  'rows, most, pieces', [(8, 4, 2), (24, 5, 4), (24, 8, 8), (16, 64, 8), (6, 4, 1)]
)
def test_passes_take_the_same_share_of_every_block(rows, most, pieces):
  passes = dealing.passes(rows, most=most, pieces=pieces)
  assert sorted(np.concatenate(passes).tolist()) == list(range(rows))
  for members in passes:
    assert len(members) <= max(most, pieces)
    assert dealing.stay(members, rows=rows, pieces=pieces)


def test_rows_that_would_move_do_not_stay():
  assert not dealing.stay(np.array([0, 1, 2, 3]), rows=8, pieces=2)
  assert not dealing.stay(np.array([0, 1, 4]), rows=8, pieces=2)
  assert dealing.stay(np.array([3, 0, 1, 2]), rows=8, pieces=1)


@pytest.mark.parametrize('shape', [{}, {'fsdp': 8}, {'data': 2, 'fsdp': 2, 'tensor': 2}])
def test_what_is_dealt_and_joined_is_what_it_was(shape):
  layout = mesh_layout(**shape)
  tree = {'a': np.arange(16.0).reshape(16, 1) * np.ones((1, 5)), 'b': np.arange(16)}
  parts = []
  for members in dealing.passes(16, most=8, pieces=layout.size('batch')):
    for local in (True, False):
      part = dealing.taken(tree, members, width=3, layout=layout, local=local)
      np.testing.assert_array_equal(part['b'], members)
      np.testing.assert_array_equal(part['a'], tree['a'][members, :3])
    parts.append(part)
  whole = dealing.joined(parts, layout=layout)
  np.testing.assert_array_equal(whole['b'], tree['b'])
  np.testing.assert_array_equal(whole['a'], tree['a'][:, :3])


def test_nothing_moves_between_devices():
  layout = mesh_layout(fsdp=4, tensor=2)
  placed = jax.ShapeDtypeStruct(
    (32, 16, 8), np.float32, sharding=layout.sharding('batch', None, None)
  )
  members = dealing.passes(32, most=8, pieces=4)[1]
  stays = dealing.taken.lower(placed, members, width=8, layout=layout, local=True).compile()
  assert not [name for name in ('all-', 'collective', 'reduce-scatter') if name in stays.as_text()]
  part = placed.update(shape=(8, 16, 8))
  joins = dealing.joined.lower([part] * 4, layout=layout).compile()
  assert not [name for name in ('all-', 'collective', 'reduce-scatter') if name in joins.as_text()]
