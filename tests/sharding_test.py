import dataclasses
import itertools
import math
import types

import jax
import numpy as np
import pytest
from jax.sharding import PartitionSpec

from opd_jax import meshes
from opd_jax.sharding import RULES, Layout, mesh_layout


def test_spec_maps_meaning_to_mesh():
  layout = mesh_layout(fsdp=2, tensor=4)
  assert layout.spec('vocab', 'embed') == PartitionSpec('tensor', 'fsdp')
  assert layout.spec('batch', 'length', 'width') == PartitionSpec(('data', 'fsdp'), None, None)
  assert layout.spec(None, 'mlp') == PartitionSpec(None, 'tensor')


def test_two_logical_axes_on_one_mesh_axis_are_both_named():
  with pytest.raises(ValueError, match=r"'heads' and 'mlp'.*'tensor'"):
    mesh_layout().spec('heads', 'mlp')


def test_an_unknown_logical_axis_is_named():
  with pytest.raises(ValueError, match="'hedas'"):
    mesh_layout().spec('hedas')
  with pytest.raises(ValueError, match='hedas'):
    mesh_layout(replicate=('hedas',))


def test_a_rule_for_a_mesh_axis_that_does_not_exist_is_refused():
  with pytest.raises(ValueError, match=r"'batch' -> 'data'.*\['fsdp'\]"):
    Layout(shape=(('fsdp', 2),), rules=RULES)


def test_minus_one_takes_the_remaining_devices():
  assert dict(mesh_layout(fsdp=-1, tensor=2).mesh.shape) == {'data': 1, 'fsdp': 4, 'tensor': 2}


@pytest.mark.parametrize('sizes', [{'fsdp': 0}, {'fsdp': -1, 'tensor': -1}, {'tensor': -2}])
def test_impossible_sizes_are_refused(sizes):
  with pytest.raises(ValueError, match='mesh ax'):
    mesh_layout(**sizes)


def test_too_few_devices_say_how_many_are_here():
  with pytest.raises(ValueError, match=r'needs 16 devices, 8 cpu'):
    _ = mesh_layout(fsdp=16).mesh


def test_an_axis_that_does_not_divide_is_named_with_its_remedy():
  with pytest.raises(ValueError, match=r"the head has 3 along 'heads'.*replicate"):
    mesh_layout(tensor=2).fitted((3,), ('heads',), what='the head')
  assert (
    mesh_layout(tensor=2, replicate=('heads',))
    .fitted((3,), ('heads',), what='the head')
    .is_fully_replicated
  )


def test_layouts_hash_and_may_live_on_other_devices():
  mine, other = (
    mesh_layout(fsdp=4, devices=tuple(jax.devices()[:4])),
    mesh_layout(fsdp=4, devices=tuple(jax.devices()[4:])),
  )
  assert hash(mine) != hash(other) and mine == mesh_layout(fsdp=4, devices=tuple(jax.devices()[:4]))
  moved = jax.device_put(
    jax.device_put(jax.numpy.arange(8.0), mine.sharding('embed')), other.sharding('embed')
  )
  assert moved.sharding.device_set == set(jax.devices()[4:])


def test_constrain_is_the_identity_on_one_device():
  x = jax.numpy.ones((2, 2))
  assert mesh_layout().constrain(x, 'batch', 'width') is x


@dataclasses.dataclass(frozen=True)
class Chip:
  """What a mesh wants to know of a TPU device."""

  id: int
  coords: tuple[int, ...]
  core_on_chip: int = 0
  platform: str = 'tpu'
  device_kind: str = 'TPU v5p'
  process_index: int = 0
  slice_index: int = 0


def pod(*sides):
  """The chips of a torus, in the order in which jax lists them: the first coordinate runs first."""
  places = itertools.product(*(range(side) for side in reversed(sides)))
  return tuple(Chip(number, place[::-1]) for number, place in enumerate(places))


@pytest.mark.parametrize(
  'sizes',
  [
    {'fsdp': 8, 'tensor': 8},
    {'fsdp': 32, 'tensor': 2},
    {'data': 2, 'fsdp': 4, 'tensor': 8},
    {'fsdp': 4, 'tensor': 16},
    {'fsdp': -1},
  ],
)
def test_any_sizes_with_the_right_product_fit_a_torus(sizes):
  chips = pod(4, 4, 4)
  mesh = mesh_layout(**sizes, devices=chips).mesh
  wanted = {'data': 1, 'fsdp': 1, 'tensor': 1} | sizes
  assert dict(mesh.shape) == {name: 64 if n == -1 else n for name, n in wanted.items()}
  assert set(mesh.devices.flat) == set(chips)
  assert set(mesh.axis_types) == {jax.sharding.AxisType.Auto}


def test_neighbours_on_a_split_axis_stay_close():
  """tensor, the axis that talks most, gets blocks of 2 x 4 chips, not chips from all over the torus."""
  mesh = mesh_layout(fsdp=8, tensor=8, devices=pod(4, 4, 4)).mesh
  for group in mesh.devices[0]:
    spans = [max(axis) - min(axis) + 1 for axis in zip(*(d.coords for d in group), strict=True)]
    assert math.prod(spans) == 8


def test_chips_that_form_no_block_are_refused_with_the_counts_that_do():
  with pytest.raises(
    ValueError,
    match=r'data=1 x fsdp=24 x tensor=1 cannot be laid over the first 24 of 64 devices, which form 4 x 4 x 4: '
    r'these are no whole block\. Choose sizes whose product is one of \[1, 2, 3, 4, 8, 12, 16, 32, 48, 64\]',
  ):
    _ = mesh_layout(fsdp=24, devices=pod(4, 4, 4)).mesh


def test_what_jax_cannot_arrange_is_refused_with_the_sizes_that_fit(monkeypatch):
  def fail(*args, **kwargs):
    raise NotImplementedError('Failed to find assignment')

  monkeypatch.setattr(jax, 'make_mesh', fail)
  monkeypatch.setattr('jax.experimental.mesh_utils.create_device_mesh', fail)
  with pytest.raises(ValueError, match=r'which form 2 x 4\. Choose each size among \[1, 2, 4, 8\]'):
    _ = mesh_layout(fsdp=2, tensor=4, devices=pod(2, 4, 1)).mesh
  with pytest.raises(ValueError, match=r'fsdp=8 x tensor=1 .* sizes whose product is 8'):
    _ = mesh_layout(fsdp=8).mesh


@pytest.mark.parametrize(
  'sizes, within',
  [
    ({'data': 2, 'fsdp': 4}, [1, 4]),
    ({'data': 1, 'fsdp': 8}, [1, 4]),
    ({'data': 4, 'fsdp': 2}, [2, 2]),
  ],
)
def test_slices_are_cut_by_the_outer_axes(sizes, within):
  chips = [
    types.SimpleNamespace(id=i, platform='x', device_kind='x', slice_index=i // 4, process_index=0)
    for i in range(8)
  ]
  mesh = meshes.over_slices(sizes, chips, 2)
  assert mesh.shape == tuple(sizes.values())
  slices = np.vectorize(lambda chip: chip.slice_index)(mesh)
  block = slices[tuple(slice(size) for size in within)]
  assert (block == block.flat[0]).all()


def test_slices_that_no_axis_divides_are_refused():
  chips = [types.SimpleNamespace(slice_index=i // 4) for i in range(12)]
  with pytest.raises(ValueError, match='over 3 slices'):
    meshes.over_slices({'data': 1, 'fsdp': 4}, chips[:4], 3)
