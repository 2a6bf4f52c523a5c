import jax
import pytest
from jax.sharding import PartitionSpec

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
